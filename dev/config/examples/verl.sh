#!/usr/bin/env bash
# DAPO's clips in the form of verl's scripts, made for the test of from_config.py.
set -xeuo pipefail
clip_ratio_low=0.2
clip_ratio_high=0.28
response_length=$((1 + 11))  # short
train_prompt_bsz=16
n_resp=${N_RESP:-8}
MODEL_PATH=${MODEL_PATH:-"$HOME/models/Qwen2.5-7B"}

python3 -m verl.trainer.main_ppo \
    algorithm.adv_estimator=grpo \
    algorithm.norm_adv_by_std_in_grpo=True \
    algorithm.use_kl_in_reward=False \
    algorithm.filter_groups.enable=True \
    algorithm.filter_groups.metric=acc \
    algorithm.filter_groups.max_num_gen_batches=10 \
    reward_model.overlong_buffer.enable=True \
    reward_model.overlong_buffer.len=4 \
    reward_model.overlong_buffer.penalty_factor=1.0 \
    data.train_files="$HOME/data/math/train.parquet" \
    data.val_files="['$HOME/data/math/test.parquet']" \
    data.train_batch_size=${train_prompt_bsz} \
    data.max_prompt_length=$((response_length * 2)) \
    data.max_response_length=${response_length} \
    data.filter_overlong_prompts=True \
    actor_rollout_ref.model.path="$MODEL_PATH" \
    actor_rollout_ref.actor.optim.lr=1e-6 \
    actor_rollout_ref.actor.optim.lr_warmup_steps=10 \
    actor_rollout_ref.actor.optim.weight_decay=0.1 \
    actor_rollout_ref.actor.ppo_mini_batch_size=$((train_prompt_bsz / 4)) \
    actor_rollout_ref.actor.shuffle=True \
    actor_rollout_ref.actor.clip_ratio_low=${clip_ratio_low} \
    actor_rollout_ref.actor.clip_ratio_high=${clip_ratio_high} \
    actor_rollout_ref.actor.clip_ratio_c=10.0 \
    actor_rollout_ref.actor.loss_agg_mode=token-mean \
    actor_rollout_ref.actor.entropy_coeff=0.001 \
    actor_rollout_ref.rollout.n=$n_resp \
    actor_rollout_ref.rollout.temperature=1.0 \
    actor_rollout_ref.rollout.gpu_memory_utilization=0.8 \
    actor_rollout_ref.rollout.val_kwargs.n=4 \
    actor_rollout_ref.rollout.val_kwargs.temperature=1.0 \
    actor_rollout_ref.rollout.val_kwargs.top_p=0.7 \
    +actor_rollout_ref.rollout.engine_kwargs.vllm.disable_mm_preprocessor_cache=True \
    trainer.logger='["console","wandb"]' \
    trainer.n_gpus_per_node=8 \
    trainer.test_freq=5 \
    trainer.save_freq=5 \
    trainer.total_epochs=${TOTAL_EPOCHS} \
    trainer.total_training_steps=2 $@
