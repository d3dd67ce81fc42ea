"""What was meant by a name that is unknown: the same thing in another program's word, or a name that is spelt alike."""

import difflib
from collections.abc import Iterable, Mapping

# Words for one thing, of this program and of others.
SYNONYMS = [
    set(words.split())
    for words in (
        "lr learning_rate max_lr base_lr",
        "n num count size num_samples samples num_images num_trajectories",
        "num_steps steps iterations iters num_iterations max_steps max_iters train_steps max_train_steps total_steps",
        "batch_size batch bs batchsize minibatch train_batch_size",
        "num_ranges repeats num_repeats",
        "states num_states",
        "accumulate gradient_accumulation_steps accumulation_steps grad_accum",
        "max_grad_norm grad_clip clip_grad clip_grad_norm gradient_clip_val gradient_clipping",
        "weight_decay wd",
        "warmup_steps warmup num_warmup_steps lr_warmup_steps warmup_iters",
        "schedule lr_scheduler lr_schedule scheduler",
        "half_life_images ema_halflife half_life halflife",
        "decay ema_decay ema_rate",
        "ramp_up ema_rampup rampup",
        "checkpoint_every save_every save_steps checkpointing_steps save_interval",
        "log_every logging_steps log_interval print_every",
        "guidance_scale guidance cfg cfg_scale",
        "workers num_workers",
        "solver sampler method",
        "rtol tolerance tol",
        "out output output_dir out_dir outdir",
        "data dataset data_dir",
        "images image_dir",
        "checkpoint ckpt run model",
        "start init init_from pretrained resume_from",
        "features feature_space",
        "precision mixed_precision amp",
        "gradient_checkpointing activation_checkpointing",
        "num_classes classes n_classes class_count",
        "seed random_seed",
        "width hidden hidden_size hidden_dim hidden_channels",
        "channels base_channels model_channels num_channels",
        "num_blocks depth num_layers num_res_blocks",
        "rank r lora_rank",
        "float16 fp16 half",
        "float32 fp32 float",
        "bf16 bfloat16",
        "inline local",
        "dopri5 dopri rk45",
        "heun2 heun",
    )
]


def suggest(name: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" for a `name` that means one of `known` or is spelt like it, else nothing."""
    return question(meant(name, {one: one for one in known}))


def question(found: str | None) -> str:
    """ "; did you mean 'x'?" of what was `found` to be meant, if anything was."""
    return f"; did you mean {found!r}?" if found else ""


def meant(name: str, *places: Mapping[str, str]) -> str | None:
    """The value under the key that `name` means, else that it is spelt like; of several `places` the first."""
    for search in (synonym, spelt_alike):
        for place in places:
            if found := search(name, place):
                return place[found]
    return None


def synonym(name: str, known: Iterable[str]) -> str | None:
    """The first of `known` that is another word for `name`, or `name` itself in other letters."""
    word = _word(name)
    same = {word}.union(*(group for group in SYNONYMS if word in group))
    return next((one for one in known if _word(one) in same), None)


def spelt_alike(name: str, known: Iterable[str]) -> str | None:
    """The one of `known` that is spelt most like `name`, if any is."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), None)


def _word(name: str) -> str:
    """ "learning_rate" of --learning-rate."""
    return name.lstrip("-").replace("-", "_").lower()
