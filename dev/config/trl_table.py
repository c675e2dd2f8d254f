"""TRL's GRPOConfig, and the keys that open-r1 puts beside it, in our flags."""
import re

from config_keys import KEYS

VERSION = "TRL 1.16"
# What GRPOConfig sets where the user does not; dev/config/test_from_config.py compares them with it.
DEFAULTS = {
    "learning_rate": "1e-6", "adam_beta1": "0.9", "adam_beta2": "0.999", "adam_epsilon": "1e-8",
    "weight_decay": "0.0", "max_grad_norm": "1.0", "lr_scheduler_type": "linear",
    "warmup_steps": "0", "num_train_epochs": "3.0", "max_steps": "-1", "seed": "42",
    "per_device_train_batch_size": "8", "gradient_accumulation_steps": "1",
    "num_generations": "8", "num_iterations": "1", "max_completion_length": "512",
    "temperature": "1.0", "top_p": "1.0", "top_k": "0", "beta": "0.0", "epsilon": "0.2",
    "loss_type": "dapo", "importance_sampling_level": "token", "scale_rewards": "group",
    "mask_truncated_completions": "False", "entropy_coef": "0.0", "use_adaptive_entropy": "False",
    "use_bias_correction_kl": "True", "use_vllm": "False", "save_steps": "500",
    "vllm_importance_sampling_correction": "True",
    "vllm_importance_sampling_mode": "sequence_mask", "vllm_importance_sampling_clip_max": "3.0",
    "fp16": "False", "gradient_checkpointing": "True",
}
# Read by translate(), and None where the user gives none.
TRANSLATED = list(DEFAULTS) + [
    "epsilon_high", "delta", "warmup_ratio", "lr_scheduler_kwargs.min_lr",
    "lr_scheduler_kwargs.min_lr_rate", "generation_batch_size", "steps_per_generation", "bf16",
    "vllm_importance_sampling_clip_min", "eval_steps", "eval_strategy", "save_strategy",
    "save_total_limit", "output_dir", "load_best_model_at_end", "num_generations_eval",
    "reward_funcs", "reward_weights", "system_prompt", "vllm_importance_sampling_cap"]
NOTES = [
    "The problems, the model and the rewards are named here by --data, --init and --reward.",
    "While the rate rises, step k (from 0) has (k + 1) / n of it; transformers gives k / n.",
    "TRL steps its schedule at every optimizer step, this program at every RL step.",
    "docs/trl.md and docs/coming-from.md say where equal names mean other things.",
]
NOT_HERE = [
    (r"model_name_or_path|model_revision|torch_dtype|dtype|attn_implementation|trust_remote_code|"
     r"model_init_kwargs.*|disable_dropout|cast_lm_head_to_fp32",
     "name the model's folder with --init; there is no dropout, attention has one form, the head "
     "computes in --logits-dtype"),
    (r"dataset_.*|benchmarks|shuffle_dataset|remove_unused_columns|preprocessing_num_workers|"
     r"dataloader_.*|data_seed",
     "problems come from --data, JSON lines, in an order that --seed fixes"),
    (r"report_to|run_name|logging_\w+|log_\w+",
     "a run's log is a file; dev/tensorboard.py and dev/wandb.py send it on"),
    (r"overwrite_output_dir", "a new run never writes over another one in --out"),
    (r"max_prompt_length", "prompts are never cut; --data-skip-long leaves long ones out"),
    (r"chat_template.*", "--chat names the format; the folder's template is used if it is known"),
    (r"min_p|repetition_penalty|generation_kwargs.*|cache_implementation",
     "the sampler has temperature, top-k and top-p only: the policy that samples differs"),
    (r"entropy_.*", "the entropy bonus keeps its coefficient"),
    (r"top_entropy_quantile", "all tokens are trained on, not only uncertain ones"),
    (r"sync_ref_model|ref_model_.*", "the KL term's model stays that before RL"),
    (r"multi_objective_aggregation", "rewards are added up first (sum_then_normalize)"),
    (r"off_policy_mask_threshold", "--correct has its own bounds"),
    (r"sapo_.*|vespo_.*", "there is no SAPO, no VESPO"),
    (r"optim|optim_args|optim_target_modules|per_gpu_train_batch_size", "the optimizer is AdamW"),
    (r"lr_scheduler_kwargs(\..*)?", "a schedule has --lr-final and --lr-decay-steps only"),
    (r"router_aux_loss_coef|max_tool_calling_iterations|tools|environment_factory",
     "there are no experts, no tools, one turn"),
    (r"use_peft|lora_\w+|load_in_[48]bit|use_liger_\w+",
     "there is no LoRA, no quantised training, no other loss kernel"),
    (r"cosine_.*|repetition_n_grams|repetition_max_penalty|code_language|code_provider|"
     r"parallel_code_exec_per_proc|soft_punish_cache|max_completion_len|soft_.*|enforce_same_.*|"
     r"code_eval_test_batch_size|e2b_router_url|morph_router_url|ioi_provider|piston_endpoint.*",
     "options of open-r1's rewards; --reward-cmd takes a program of your own"),
]


def canonical(key):
    return {"vllm_importance_sampling_cap": "vllm_importance_sampling_clip_max"}.get(key, key)


def without_counterpart(key):
    """Why a key has none; None: nobody knows it."""
    why = next((why for pattern, why in NOT_HERE if re.fullmatch(pattern, key)), None)
    if why or key.split(".")[0] not in KEYS["TRL"]:
        return why
    return "about another engine, its memory, logging or files"


def batch(t):
    """Prompts a step, mini-batches, and how many of TRL's optimizer steps one of our steps has."""
    each, parts = t.number("per_device_train_batch_size"), t.number("gradient_accumulation_steps")
    group, epochs = t.number("num_generations"), t.number("num_iterations")
    if None in (each, parts, group, epochs) or min(each, parts, group, epochs) < 1:
        t.refused.append("the sizes of the batch are no numbers from 1 on; give --prompts, --group, "
                         "--updates and --epochs")
        return 1
    optimizer = each * parts * t.processes
    generated = t.number("generation_batch_size")
    if generated is None:
        generated = each * t.processes * (t.number("steps_per_generation") or parts)
    keys = ("per_device_train_batch_size", "gradient_accumulation_steps")
    note = f"{generated:.10g} completions in {t.processes} process{'es' * (t.processes > 1)}; " \
           "--processes tells this program how many"
    t.set("group", t.value("num_generations"), "num_generations")
    t.set("prompts", f"{generated / group:.10g}", *keys, note=note)
    t.set("updates", f"{generated / optimizer:.10g}", *keys)
    t.set("epochs", t.value("num_iterations"), "num_iterations")
    return max(1, generated / optimizer * epochs)


def schedule(t, each):
    """each: optimizer steps of an RL step."""
    def in_steps(key):
        return f"{t.number(key) / each:.10g}"
    if t.number("max_steps") is not None and t.number("max_steps") > 0:
        t.set("steps", in_steps("max_steps"), "max_steps",
              note=f"an RL step has {each:.10g} of TRL's" if each > 1 else "")
    else:
        t.set("passes", t.value("num_train_epochs"), "num_train_epochs")
    kind = str(t.value("lr_scheduler_type"))
    ours = {"linear": "linear", "cosine": "cosine", "constant": "constant",
            "constant_with_warmup": "constant", "cosine_with_min_lr": "cosine"}.get(kind)
    if not ours:
        t.refused.append(f"{t.entry('lr_scheduler_type')}: --schedule is constant, linear or cosine")
        return
    t.set("schedule", ours, "lr_scheduler_type")
    rate, share = t.number("learning_rate"), t.number("warmup_ratio")
    warm = t.number("warmup_steps") or 0
    if kind == "constant":
        t.flags["lr-warmup"] = (0, [str(t.entry("lr_scheduler_type"))], "it has no warm-up")
    elif share or 0 < warm < 1:
        key = "warmup_ratio" if share else "warmup_steps"
        t.flags["lr-warmup"] = (f"{100 * (share or warm):.10g}%", [str(t.entry(key))], "")
    else:
        t.set("lr-warmup", in_steps("warmup_steps"), "warmup_steps")
    final = t.number("lr_scheduler_kwargs.min_lr_rate"), t.number("lr_scheduler_kwargs.min_lr")
    if final[0] is not None and ours == "cosine":
        t.set("lr-final", final[0], "lr_scheduler_kwargs.min_lr_rate")
    elif final[1] is not None and ours == "cosine" and rate:
        t.set("lr-final", f"{final[1] / rate:.10g}", "lr_scheduler_kwargs.min_lr")


def loss(t):
    kind, level = str(t.value("loss_type")), str(t.value("importance_sampling_level"))
    high = "epsilon_high" if "epsilon_high" in t.given else "epsilon"
    aggregate = {"dapo": "token-mean", "bnpo": "token-mean", "grpo": "seq-mean-token-mean",
                 "dr_grpo": "seq-mean-token-sum-norm", "cispo": "token-mean",
                 "luspo": "seq-mean-token-sum"}.get(kind)
    if kind in ("dapo", "cispo") and t.flags.get("updates", t.ours["updates"])[0] != 1:
        aggregate = "rollout-token-mean"
    if not aggregate or level not in ("token", "sequence"):
        t.refused.append(f"{t.entry('loss_type')}, importance_sampling_level {level}: give "
                         "--objective and --aggregate yourself")
        return
    note = "bnpo divides by the tokens of a micro-batch; the same where there is one" \
        if kind == "bnpo" else ""
    if kind == "cispo":
        t.set("objective", "cispo", "loss_type")
        t.set("clip-low", "1", "loss_type")
        if t.number(high) is not None:
            t.set("clip-high", f"{t.number(high) - 1:.10g}", high,
                  note="TRL cuts the ratio at epsilon_high itself")
    else:
        t.set("objective", "gspo" if level == "sequence" else "grpo", "loss_type",
              "importance_sampling_level")
        t.set("clip-low", t.value("epsilon"), "epsilon")
        t.set("clip-high", t.value(high), high)
        if level == "token" and t.value("delta") is not None:
            t.set("ratio-cap", t.value("delta"), "delta",
                  note="for A < 0 only: as in TRL if it is at least 1 + epsilon_high")
    t.set("aggregate", aggregate, "loss_type", note=note)
    if t.true("mask_truncated_completions"):
        t.set("overlong-filter", 1, "mask_truncated_completions",
              note="TRL keeps such sequences in means over sequences")
    if (t.number("entropy_coef") or 0) > 0 and "mean" in aggregate and "seq" not in aggregate:
        t.set("entropy-coef", t.value("entropy_coef"), "entropy_coef")
    elif (t.number("entropy_coef") or 0) > 0:
        t.refused.append(f"{t.entry('entropy_coef')}: the bonus follows --aggregate here; TRL's is "
                         "the mean over tokens")
    if t.true("use_adaptive_entropy"):
        t.refused.append(f"{t.entry('use_adaptive_entropy')}: the coefficient stays as it is here")
    if (t.number("beta") or 0) > 0:
        t.set("kl-coef", t.value("beta"), "beta")
        t.set("kl-estimator", "k2" if t.true("use_bias_correction_kl") else "k3",
              "use_bias_correction_kl", note="TRL's bias-corrected k3 has the gradient of our k2"
              if t.true("use_bias_correction_kl") else "k3 has the ratio as a factor here")
    scale = str(t.value("scale_rewards")).lower()
    if scale in ("group", "true", "batch"):
        t.set("advantage", "batch-std" if scale == "batch" else "std", "scale_rewards")
        t.flags["advantage-eps"] = ("1e-4", [f"{VERSION} adds it to the standard deviation"], "")
    elif scale in ("none", "false"):
        t.set("advantage", "mean", "scale_rewards")
    else:
        t.refused.append(f"{t.entry('scale_rewards')}: it should be group, batch or none")


def sampler(t):
    t.set("max-new-tokens", t.value("max_completion_length"), "max_completion_length")
    t.set("temperature", t.value("temperature"), "temperature")
    if t.number("top_p") is not None and t.number("top_p") < 1:
        t.set("top-p", t.value("top_p"), "top_p")
    if (t.number("top_k") or 0) > 0:
        t.set("top-k", t.value("top_k"), "top_k")
    if "top-p" in t.flags or "top-k" in t.flags:
        t.flags["trainer-support"] = ("full", [f"{VERSION}'s trainer normalises over all tokens"],
                                      "")
    half = "fp16" if t.true("fp16") else "bf16" if str(t.value("bf16")).lower() != "false" else None
    if half:
        t.set("train-dtype", half, "bf16" if half == "bf16" else "fp16",
              note="TRL trains so unless bf16 and fp16 are false")
        t.set("rollout-dtype", half, "bf16" if half == "bf16" else "fp16")
    t.flags["anchor"] = ("recompute", [f"{VERSION}'s old log-probabilities are the trainer's"], "")
    if t.true("use_vllm") and t.true("vllm_importance_sampling_correction"):
        mode = str(t.value("vllm_importance_sampling_mode"))
        ours = {"token_truncate": "tis", "token_mask": "mis", "sequence_truncate": "seq-tis",
                "sequence_mask": "seq-mis"}.get(mode)
        if not ours:
            t.refused.append(f"{t.entry('vllm_importance_sampling_mode')}: no --correct is this")
            return
        t.set("correct", ours, "vllm_importance_sampling_mode")
        t.set("correct-low", t.value("vllm_importance_sampling_clip_min") or 0,
              "vllm_importance_sampling_clip_min")
        t.set("correct-high", t.value("vllm_importance_sampling_clip_max"),
              "vllm_importance_sampling_clip_max")


def files(t, each):
    if "output_dir" in t.given:
        t.set("out", t.value("output_dir"), "output_dir")
    if str(t.value("save_strategy")).lower() != "no" and (t.number("save_steps") or 0) >= 1:
        t.set("checkpoint-every", f"{max(1, t.number('save_steps') // each):.10g}", "save_steps")
    if t.value("save_total_limit") is not None:
        t.set("checkpoint-keep", t.value("save_total_limit"), "save_total_limit")
    if t.true("load_best_model_at_end"):
        t.set("checkpoint-best", 1, "load_best_model_at_end",
              note="by pass@1; it is kept, not loaded")
    if str(t.value("eval_strategy")).lower() == "steps" and (t.number("eval_steps") or 0) >= 1:
        t.set("eval-every", f"{max(1, t.number('eval_steps') // each):.10g}", "eval_steps")
    if t.value("num_generations_eval") is not None:
        t.set("eval-samples", t.value("num_generations_eval"), "num_generations_eval")
        t.flags["eval-k"] = ("0", [str(t.entry("num_generations_eval"))], "")


def rewards(t):
    """What open-r1 calls accuracy is MATH's rule; other names are functions of theirs."""
    names, weights = t.value("reward_funcs"), t.value("reward_weights")
    if not isinstance(names, list):
        t.lose("reward_funcs", "name graders with --reward, or a program with --reward-cmd")
        t.lose("reward_weights", "weights stand in --reward: 0.9*boxed+0.1*exact")
        return
    if not isinstance(weights, list) or len(weights) != len(names):
        weights = ["1"] * len(names)
    known = [f"{w}*boxed" for name, w in zip(names, weights) if name == "accuracy"]
    others = [name for name in names if name != "accuracy"]
    if known:
        t.set("reward", known[0], "reward_funcs",
              *(["reward_weights"] if "reward_weights" in t.given else []),
              note="MATH's rule on \\boxed{...}" +
              (f"; {', '.join(others)}: functions of theirs, not translated" if others else ""))
    else:
        t.lose("reward_funcs", "these are functions of theirs; name graders with --reward, or a "
                               "program with --reward-cmd")
    if not known:
        t.lose("reward_weights", "weights stand in --reward: 0.9*boxed+0.1*exact")


def translate(t):
    each = batch(t)
    schedule(t, each)
    t.set("lr", t.value("learning_rate"), "learning_rate")
    for flag, key in (("beta1", "adam_beta1"), ("beta2", "adam_beta2"),
                      ("adam-eps", "adam_epsilon"), ("weight-decay", "weight_decay")):
        t.set(flag, t.value(key), key)
    norm = t.number("max_grad_norm")
    t.set("grad-clip", "inf" if norm == 0 else t.value("max_grad_norm"), "max_grad_norm")
    loss(t)
    sampler(t)
    t.flags["seed"] = (t.value("seed"), [str(t.entry("seed"))], "other draws than TRL's")
    if t.true("gradient_checkpointing") and "gradient_checkpointing" in t.given:
        t.set("recompute", 2, "gradient_checkpointing")
    files(t, each)
    rewards(t)
    prompt = t.value("system_prompt")
    if prompt is not None and "\n" not in prompt.strip():
        t.set("system", prompt.strip(), "system_prompt")
    elif prompt is not None:
        t.lose("system_prompt", "--system takes one line; put the text into the problems")
