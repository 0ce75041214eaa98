"""The names that people give to models, data and figures, and that libraries have."""

import re

MODEL_NAMES = {"model", "net", "network", "classifier", "module", "lit_model"}
EPOCHS = {"epochs", "num_epochs", "n_epochs", "nb_epochs", "max_epochs", "num_train_epochs"}
DATA = re.compile(
    r"load|data|set\b|_set|_dl\b|_ds\b|\bdl\b|\bds\b|batches|_iter(ator)?\b", re.IGNORECASE
)
TESTS = re.compile(r"test|val|eval|dev_|dev\b", re.IGNORECASE)
TRAINS = re.compile(r"train|fit|learn|tr_", re.IGNORECASE)
BASES = re.compile(r"(Lightning)?Module$|PreTrainedModel$|^Sequential$")
MAKERS = re.compile(
    r"from_pretrained|from_config|create_model|Sequential|resnet\w*|\w+For[A-Z]\w+|\w+Model|vit_\w+"
)
# The parameters of what libraries' trainers take, as far as they are given by position.
KNOWN = {
    "Trainer": ["model", "args", "data_collator", "train_dataset", "eval_dataset"],
    "fit": ["model", "train_dataloaders", "val_dataloaders", "datamodule"],
    "test": ["model", "dataloaders"],
    "validate": ["model", "dataloaders"],
    "evaluate": ["eval_dataset"],
}
LAUNCHERS = {
    "init_process_group": "torch.distributed",
    "DistributedDataParallel": "torch.distributed",
    "FullyShardedDataParallel": "torch.distributed",
    "torch_xla": "a TPU",
    "deepspeed": "DeepSpeed",
    "horovod": "Horovod",
}
# Calls that say or keep something, and change nothing that is trained.
NOISE = re.compile(
    r"(print|log|show|plot|save|draw|visuali|write|dump)\w*|info|debug|warning|summary|watch|init"
    r"|makedirs|mkdir|add_scalars?|append|imshow|close|set_description|set_postfix|flush|finish"
)
SEEDS = re.compile(r"\w*seed\w*")
# Of these, calls that change nothing that is read later, either.
SAYS = re.compile(
    r"(print|log|show|plot|save|draw|visuali|write|dump|imshow)\w*|info|debug|warning|set_description"
    r"|set_postfix(_str)?|add_scalars?|add_images?|add_histogram|flush"
)
# What a loop does beside training.
STOPS = re.compile(r"stop|checkpoint|logger|writer", re.IGNORECASE)  # `early_stopping(loss, model)`
STEPS = {"step", "set_epoch"}
# What is around the data that a loop goes through, and what only counts.
WRAPPERS = {"enumerate", "tqdm", "iter", "track", "progress_bar", "list"}
COUNTERS = {"range", "trange", "count"}
COMMAND_LINES = {"parse_args", "parse_known_args", "parse_args_into_dataclasses"}
FIGURES = {"loss", "accuracy"}
FILLS = {"append", "extend", "insert", "setdefault", "update"}
# Calls that draw random numbers.
DRAWS = re.compile(r"random|\brand|test_split|shuffle|permut|choice|\.sample|normal|uniform|make_")
# Calls that take from all examples what each is then treated with.
FITS = re.compile(
    r"fit|fit_transform|build_vocab\w*|compute_class_weight|bincount|value_counts|most_common"
    r"|mean|std|Counter"
)
