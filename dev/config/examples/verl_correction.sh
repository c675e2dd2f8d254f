# A quantised rollout with truncated importance sampling, made for the test of from_config.py.
DATA=(
    data.train_batch_size=8
    data.max_response_length=12
)
ALGORITHM=(
    algorithm.adv_estimator=rloo
    algorithm.rollout_correction.rollout_is=token
    algorithm.rollout_correction.rollout_is_threshold=2.0
    algorithm.rollout_correction.bypass_mode=false
)
python3 -m verl.trainer.main_ppo "${DATA[@]}" "${ALGORITHM[@]}" \
    actor_rollout_ref.actor.ppo_mini_batch_size=8 \
    actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean \
    actor_rollout_ref.actor.use_kl_loss=True actor_rollout_ref.actor.kl_loss_coef=0.001 \
    actor_rollout_ref.rollout.n=4 \
    +actor_rollout_ref.rollout.quantization=fp8 \
    actor_rollout_ref.rollout.temprature=0.7 \
    trainer.total_training_steps=2
