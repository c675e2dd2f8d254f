"""verl's trainer configuration in our flags."""
import re

from config_keys import KEYS

VERSION = "verl 0.9.1"
A, R = "actor_rollout_ref.actor.", "actor_rollout_ref.rollout."
# What its configuration sets; dev/config/test_from_config.py compares them with its files.
DEFAULTS = {
    "data.train_batch_size": "1024", "data.max_response_length": "512",
    "data.filter_overlong_prompts": "False", "data.seed": None,
    A + "ppo_mini_batch_size": "256", A + "ppo_epochs": "1", A + "shuffle": "False",
    A + "clip_ratio": "0.2", A + "clip_ratio_low": "0.2", A + "clip_ratio_high": "0.2",
    A + "clip_ratio_c": "3.0", A + "policy_loss.loss_mode": "vanilla",
    A + "loss_agg_mode": "token-mean", A + "entropy_coeff": "0", A + "use_kl_loss": "False", A + "kl_loss_coef": "0.001",
    A + "kl_loss_type": "low_var_kl", A + "grad_clip": "1.0", A + "optim.clip_grad": "1.0", A + "optim.lr": "1e-6",
    A + "optim.lr_warmup_steps": "-1", A + "optim.lr_warmup_steps_ratio": "0.0",
    A + "optim.weight_decay": "0.01", A + "optim.betas": ["0.9", "0.999"],
    A + "optim.min_lr_ratio": "0.0", A + "optim.lr_scheduler_type": "constant",
    A + "fsdp_config.dtype": "bfloat16", R + "dtype": "bfloat16",
    A + "fsdp_config.qat.enable": "False", A + "fsdp_config.qat.mode": "w4a16",
    A + "fsdp_config.qat.group_size": "16",
    R + "quantization": None,
    R + "n": "1", R + "temperature": "1.0", R + "top_p": "1", R + "top_k": "-1",
    R + "val_kwargs.n": "1", R + "val_kwargs.temperature": "0", R + "val_kwargs.top_p": "1.0",
    "algorithm.adv_estimator": "gae", "algorithm.norm_adv_by_std_in_grpo": "True",
    "algorithm.filter_groups.enable": "False", "algorithm.filter_groups.max_num_gen_batches": "0",
    "algorithm.use_kl_in_reward": "False", "algorithm.kl_ctrl.kl_coef": "0.001",
    "algorithm.rollout_correction.rollout_is": None,
    "algorithm.rollout_correction.rollout_is_threshold": "2.0",
    "algorithm.rollout_correction.bypass_mode": "False",
    "trainer.total_epochs": "30", "trainer.total_training_steps": None,
    "trainer.save_freq": "-1", "trainer.test_freq": "-1", "trainer.max_actor_ckpt_to_keep": None,
    "actor_rollout_ref.model.enable_gradient_checkpointing": "True",
}
OVERLONG = "reward.reward_kwargs.overlong_buffer_cfg."
TRANSLATED = list(DEFAULTS) + ["trainer.default_local_dir", A + "optim.warmup_style",
                               "algorithm.kl_penalty", A + "optim.grad_clip",
                               OVERLONG + "enable", OVERLONG + "len",
                               OVERLONG + "penalty_factor", OVERLONG + "log"]
NOTES = [
    "The problems, the model and the rewards are named here by --data, --init and --reward.",
    "While the rate rises, step k (from 0) has (k + 1) / n of it; verl gives k / n.",
    "verl leaves out the problems that do not fill a batch; a pass here goes on in the next step.",
    "docs/coming-from.md and docs/correction.md say where equal names mean other things.",
]
ROOTS = ("data", "actor_rollout_ref", "critic", "reward", "reward_model", "algorithm", "trainer",
         "custom_reward_function", "global_profiler", "ray_kwargs", "ray_init", "distillation",
         "transfer_queue", "sandbox_fusion", "hydra")
NOT_HERE = [
    (r"data\.(train_files|val_files|prompt_key|reward_fn_key|shuffle|train_max_samples|"
     r"val_max_samples|custom_cls.*|return_.*|dataloader.*|image.*|video.*|audio.*|sampler.*|"
     r"val_batch_size|validation_shuffle|trust_remote_code|use_shm|tokenizer|"
     r"filter_overlong_prompts_workers|apply_chat_template_kwargs.*|tool_config_path|.*_kwargs.*|"
     r"function_tool_path|datagen.*)",
     "problems come from --data, JSON lines, in an order that --seed fixes"),
    (r"data\.gen_batch_size", "a round of --resample draws as many groups as are missing"),
    (r"data\.(max_prompt_length|truncation)",
     "prompts are never cut; --data-skip-long leaves those out that do not fit the context"),
    (r"actor_rollout_ref\.model\.(path|tokenizer_path|hf_config_path|use_shm|external_lib|"
     r"trust_remote_code|override_config.*|custom_chat_template)",
     "name the model's folder with --init, its tokenizer with --tokenizer"),
    (r"actor_rollout_ref\.model\.(lora.*|target_modules|exclude_modules)", "there is no LoRA"),
    (r"actor_rollout_ref\.actor\.(tau_.*|policy_loss\.(?!loss_mode).*|loss_scale_factor)",
     "a constant of another objective; seq-mean-token-sum-norm divides by --max-new-tokens"),
    (r"actor_rollout_ref\.actor\.optim\..*", "the optimizer is AdamW with --adam-eps 1e-8"),
    (r"algorithm\.(gamma|lam)", "there is no critic: an advantage is that of the whole response"),
    (r"algorithm\.filter_groups.*", "--resample compares rewards, and draws in rounds"),
    (r"algorithm\.kl_ctrl\..*|algorithm\.(use_pf_ppo|pf_ppo.*)", "--kl-coef stays as it is"),
    (r"algorithm\.rollout_correction\..*",
     "of verl's corrections --correct has tis, seq-tis and three masks (docs/correction.md)"),
    (r"critic\..*", "there is no critic"),
    (r"reward\..*|reward_model\..*|custom_reward_function\..*|sandbox_fusion\..*",
     "--reward names graders, --reward-cmd a program of your own"),
    (r"actor_rollout_ref\.rollout\.val_kwargs\..*",
     "evaluations are sampled, and greedy once for each prompt"),
    (r"actor_rollout_ref\.rollout\.(multi_turn|agent).*", "there is one turn, without tools"),
    (r"actor_rollout_ref\.rollout\.(ignore_eos|do_sample|over_sample_rate)",
     "responses are sampled until an end token"),
    (r"trainer\.(val_before_train|val_only|log_val_generations)",
     "there is an evaluation before the first step and after the last"),
    (r"trainer\.critic_warmup", "there is no critic"),
    (r"trainer\.resume_(mode|from_path)", "--resume=auto on the command line continues a run"),
    (r"trainer\.(logger|project_name|experiment_name)",
     "a run's log is a file; dev/tensorboard.py and dev/wandb.py send it on"),
    (r"distillation\..*", "there is no distillation"),
]


def canonical(key):
    """Older scripts have the overlong buffer, and all of a reward's options, elsewhere."""
    return re.sub(r"^(reward_model\.overlong_buffer|reward_model\.reward_kwargs\.overlong_buffer_cfg)\.",
                  OVERLONG, key)


def is_root(name):
    return name in ROOTS


def without_counterpart(key):
    """Why a key has none; None: nobody knows it."""
    if key.split(".")[0] == "defaults":
        return "hydra puts other files together by it; give their keys too"
    parts = key.split(".")
    if not any(".".join(parts[:n]) in KEYS["verl"] for n in range(1, len(parts) + 1)):
        return None
    return next((why for pattern, why in NOT_HERE if re.fullmatch(pattern, key)),
                "about another engine, its memory, logging or files")


def batch(t):
    prompts, mini = t.number("data.train_batch_size"), t.number(A + "ppo_mini_batch_size")
    t.set("prompts", t.value("data.train_batch_size"), "data.train_batch_size")
    t.set("group", t.value(R + "n"), R + "n")
    if prompts and mini:
        t.set("updates", f"{prompts / mini:.10g}", A + "ppo_mini_batch_size", "data.train_batch_size")
    t.set("epochs", t.value(A + "ppo_epochs"), A + "ppo_epochs")
    if t.true(A + "shuffle"):
        t.set("shuffle", 1, A + "shuffle",
              note="whole groups are dealt here; verl deals single responses")


def rate(t):
    o = A + "optim."
    t.set("lr", t.value(o + "lr"), o + "lr")
    t.set("weight-decay", t.value(o + "weight_decay"), o + "weight_decay")
    betas = t.value(o + "betas")
    if isinstance(betas, list) and len(betas) == 2:
        t.set("beta1", betas[0], o + "betas")
        t.set("beta2", betas[1], o + "betas")
    norm = next((k for k in (o + "grad_clip", o + "clip_grad", A + "grad_clip") if k in t.given),
                o + "clip_grad")
    t.set("grad-clip", t.value(norm), norm,
          note=f"{VERSION} reads optim.clip_grad instead" if norm == A + "grad_clip" else "")
    kind = o + ("warmup_style" if t.value(o + "warmup_style") else "lr_scheduler_type")
    if t.value(kind) not in ("constant", "cosine"):
        t.refused.append(f"{t.entry(kind)}: --schedule is constant, linear or cosine")
    else:
        t.set("schedule", t.value(kind), kind)
        if t.value(kind) == "cosine":
            t.set("lr-final", t.value(o + "min_lr_ratio"), o + "min_lr_ratio")
    steps, share = t.number(o + "lr_warmup_steps"), t.number(o + "lr_warmup_steps_ratio")
    if steps is not None and steps >= 0:
        t.set("lr-warmup", t.value(o + "lr_warmup_steps"), o + "lr_warmup_steps")
    elif share:
        t.flags["lr-warmup"] = (f"{100 * share:.10g}%", [str(t.entry(o + "lr_warmup_steps_ratio"))],
                                "rounded up; verl rounds down")
    else:
        t.flags["lr-warmup"] = (0, [str(t.entry(o + "lr_warmup_steps_ratio"))], "")


def loss(t):
    mode = t.value(A + "policy_loss.loss_mode")
    ours = {"vanilla": "grpo", "gspo": "gspo", "dppo_tv": "dppo-tv", "dppo_kl": "dppo-kl",
            "cispo": "cispo"}.get(mode)
    low, high = ((A + "clip_ratio_low") if A + "clip_ratio_low" in t.given else A + "clip_ratio",
                 (A + "clip_ratio_high") if A + "clip_ratio_high" in t.given else A + "clip_ratio")
    if not ours:
        t.refused.append(f"{t.entry(A + 'policy_loss.loss_mode')}: give --objective yourself")
    else:
        t.set("objective", ours, A + "policy_loss.loss_mode")
        if ours.startswith("dppo") and t.number(low) != t.number(high):
            t.refused.append(f"{t.entry(low)}, {t.entry(high)}: --delta is one for both signs of A")
        elif ours.startswith("dppo"):
            t.set("delta", t.value(high), high)
        else:
            t.set("clip-low", t.value(low), low)
            t.set("clip-high", t.value(high), high)
        if ours == "grpo" or ours.startswith("dppo"):
            t.set("ratio-cap", t.value(A + "clip_ratio_c"), A + "clip_ratio_c")
    aggregate = t.value(A + "loss_agg_mode")
    if aggregate not in ("token-mean", "token-sum", "seq-mean-token-mean", "seq-mean-token-sum",
                         "seq-mean-token-sum-norm"):
        t.refused.append(f"{t.entry(A + 'loss_agg_mode')}: --aggregate has no such sum")
    else:
        t.set("aggregate", aggregate, A + "loss_agg_mode")
    if t.number(A + "entropy_coeff"):
        t.set("entropy-coef", t.value(A + "entropy_coeff"), A + "entropy_coeff")
    if t.true(A + "use_kl_loss"):
        kind = {"low_var_kl": "k3", "k3": "k3", "mse": "k2", "k2": "k2"}.get(
            t.value(A + "kl_loss_type"))
        t.set("kl-coef", t.value(A + "kl_loss_coef"), A + "kl_loss_coef", A + "use_kl_loss")
        if kind:
            t.set("kl-estimator", kind, A + "kl_loss_type",
                  note="it has the ratio as a factor here, which is 1 before the first update")
        else:
            t.refused.append(f"{t.entry(A + 'kl_loss_type')}: as a loss --kl-estimator has k2, k3")
    elif t.true("algorithm.use_kl_in_reward"):
        t.set("kl-coef", t.value("algorithm.kl_ctrl.kl_coef"), "algorithm.kl_ctrl.kl_coef",
              "algorithm.use_kl_in_reward")
        t.set("kl-estimator", "k1", "algorithm.use_kl_in_reward",
              note="of the sampler's log-probabilities; verl takes the trainer's")
    estimator = t.value("algorithm.adv_estimator")
    if estimator == "grpo":
        scaled = t.true("algorithm.norm_adv_by_std_in_grpo")
        t.set("advantage", "std" if scaled else "mean", "algorithm.adv_estimator",
              "algorithm.norm_adv_by_std_in_grpo")
    elif estimator in ("rloo", "reinforce_plus_plus", "reinforce_plus_plus_baseline"):
        t.set("advantage", estimator.replace("_plus_plus", "++").replace("_", "-"),
              "algorithm.adv_estimator")
    else:
        t.refused.append(f"{t.entry('algorithm.adv_estimator')}: --advantage has no such estimator")


def dapo(t):
    """What DAPO adds to the sampling of groups and to rewards."""
    f = "algorithm.filter_groups."
    if t.true(f + "enable"):
        batches = t.number(f + "max_num_gen_batches") or 0
        t.set("resample", batches - 1 if batches > 1 else 1000, f + "enable",
              f + "max_num_gen_batches", note="rounds that draw again where rewards are equal")
    if not t.true(OVERLONG + "enable"):
        return
    factor = OVERLONG + "penalty_factor"
    if t.number(factor) != 1:
        t.refused.append(f"{t.entry(factor)}: the penalty of --overlong-buffer grows to 1")
    else:
        t.set("overlong-buffer", t.value(OVERLONG + "len"), OVERLONG + "len", factor)


def correction(t):
    c = "algorithm.rollout_correction."
    if t.true(c + "bypass_mode"):
        t.set("anchor", "rollout", c + "bypass_mode")
    else:
        t.set("anchor", "recompute", c + "bypass_mode")
    kind = t.value(c + "rollout_is")
    if kind in ("token", "sequence"):
        t.set("correct", "tis" if kind == "token" else "seq-tis", c + "rollout_is")
        t.set("correct-high", t.value(c + "rollout_is_threshold"), c + "rollout_is_threshold")
    elif kind is not None:
        t.refused.append(f"{t.entry(c + 'rollout_is')}: it should be token, sequence or null")


def sampler(t):
    t.set("max-new-tokens", t.value("data.max_response_length"), "data.max_response_length")
    t.set("temperature", t.value(R + "temperature"), R + "temperature")
    top_k, top_p = t.number(R + "top_k") or 0, t.number(R + "top_p")
    if top_k > 0:
        t.set("top-k", t.value(R + "top_k"), R + "top_k")
    t.set("top-p", t.value(R + "top_p"), R + "top_p")
    if top_k > 0 or (top_p is not None and top_p < 1):
        t.flags["trainer-support"] = ("full", [f"{VERSION}'s trainer normalises over all tokens"],
                                      "")
    names = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "bf16": "bf16",
             "fp16": "fp16", "fp32": "fp32", "half": "fp16", "float": "fp32"}
    quantized = t.value(R + "quantization")
    if quantized not in (None, "fp8"):
        t.refused.append(f"{t.entry(R + 'quantization')}: no --rollout-dtype is this")
    elif quantized:
        t.set("rollout-dtype", "fp8_e4m3", R + "quantization",
              note="with a scale a row of activations, a channel of weights")
    for flag, key in (("train-dtype", A + "fsdp_config.dtype"), ("rollout-dtype", R + "dtype")):
        if flag in t.flags:
            continue
        if str(t.value(key)) in names:
            t.set(flag, names[t.value(key)], key)
        else:
            t.refused.append(f"{t.entry(key)}: {flag} knows no such format")


def blocks(t):
    """verl's quantization-aware training: its trainer rounds weights as its sampler stores them."""
    q = A + "fsdp_config.qat."
    if not t.true(q + "enable"):
        return
    if t.value(q + "mode") != "w4a16" or t.number(q + "group_size") != 16:
        t.refused.append(f"{t.entry(q + 'mode')}, {t.entry(q + 'group_size')}: --train-block has nvfp4 for "
                         "weights, in blocks of 16; activations have no blocks here")
        return
    for flag in ("train-block", "rollout-block"):
        t.set(flag, "nvfp4", q + "enable", q + "mode", note="the head and embeddings are left out, as in verl")


def files(t):
    if t.value("trainer.total_training_steps") is not None:
        t.set("steps", t.value("trainer.total_training_steps"), "trainer.total_training_steps")
    else:
        t.set("passes", t.value("trainer.total_epochs"), "trainer.total_epochs")
    for flag, key in (("checkpoint-every", "trainer.save_freq"), ("eval-every",
                                                                  "trainer.test_freq")):
        often = t.number(key)
        if often is not None:
            t.set(flag, max(0, often), key, note="first and last" if often <= 0 else "")
    if t.value("trainer.max_actor_ckpt_to_keep") is not None:
        t.set("checkpoint-keep", t.value("trainer.max_actor_ckpt_to_keep"),
              "trainer.max_actor_ckpt_to_keep")
    else:
        t.flags["checkpoint-keep"] = (0, [str(t.entry("trainer.max_actor_ckpt_to_keep"))], "all")
    if "trainer.default_local_dir" in t.given:
        t.set("out", t.value("trainer.default_local_dir"), "trainer.default_local_dir")
    k = R + "val_kwargs."
    t.set("eval-samples", t.value(k + "n"), k + "n")
    t.flags["eval-k"] = (0, [str(t.entry(k + "n"))], "")
    if (t.number(k + "temperature") or 0) > 0:
        t.set("eval-temperature", t.value(k + "temperature"), k + "temperature")
    else:
        t.lose(k + "temperature", "0 is greedy, which every evaluation reports too")
    t.set("eval-top-p", t.value(k + "top_p"), k + "top_p")


def translate(t):
    batch(t)
    rate(t)
    loss(t)
    dapo(t)
    correction(t)
    sampler(t)
    blocks(t)
    if t.true("data.filter_overlong_prompts"):
        t.set("data-skip-long", 1, "data.filter_overlong_prompts")
    if t.value("data.seed") is not None:
        t.flags["seed"] = (t.value("data.seed"), [str(t.entry("data.seed"))],
                           "other draws than verl's")
    checkpointing = "actor_rollout_ref.model.enable_gradient_checkpointing"
    if t.true(checkpointing) and checkpointing in t.given:
        t.set("recompute", 2, checkpointing)
    t.lose("algorithm.kl_penalty", "the KL penalty on the reward is k1")
    t.lose(OVERLONG + "log", "the log always has the mean of this penalty")
    files(t)
