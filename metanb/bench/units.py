"""What is timed, and beside what: names and settings alone, so that reading them loads no torch."""

from metanb.settings import Settings, preset

# Meta-gradients: unit -> what it is, and its settings.
UNITS: dict[str, tuple[str, Settings]] = {
    "U1": (
        "Omniglot 5-way 1-shot, 32 tasks, 1 step, 1 query image per class",
        preset("paper", "omniglot"),
    ),
    "U2": ("the same with 15 query images per class", preset("paper", "omniglot", queries=15)),
    "U3": (
        "Omniglot 20-way 1-shot, 16 tasks, 5 steps, 1 query image per class",
        preset("paper", "omniglot", 20),
    ),
    "U4": (
        "mini-ImageNet 5-way 1-shot, 4 tasks, 5 steps, 15 query images per class",
        preset("paper", "mini-imagenet"),
    ),
}

# Hessian norms at adapted solutions, 5-way 1-shot: unit -> what it is.
HESSIANS = {
    "H": "the paper's ConvNet, 16 tasks of U1",
    "HR": "torchvision's ResNet-18, running statistics frozen; a task of random 32x32 RGB images",
}

# Names of candidates; the peers' are keys of peers.PEERS and peers.HESSIAN_PEERS.
OURS = "metanb"
NO_BOUND = "metanb, risk=1"  # Hessian norms without a bound on what the start hides, as the peers
PLAIN = "metanb, plain layers"  # the same network as a module that knows nothing of tasks
BASE = "higher, one task at a time"
HESSIAN_BASE = "PyHessian, at most 20 iterations"
VMAP = "torch.func vmap, own batch norm"

HESSIAN_TASKS = 16
RESNET_TASKS = 1  # it takes minutes
CHECKED_TASKS = 6  # tasks per unit whose gradients are compared one by one
WRONG = 1e-9  # relative error in float64 above which a gradient is wrong, not only rounded

# Whole iterations: cell -> what it is, and its settings.
CELLS: dict[str, tuple[str, Settings]] = {
    "R1": ("Omniglot 20-way 1-shot, MAML", preset("paper", "omniglot", 20)),
    "R2": (
        "mini-ImageNet 5-way 1-shot, first-order MAML",
        preset("paper", "mini-imagenet", algorithm="fomaml"),
    ),
}
# cell -> the unit and the order of its meta-gradient in UNITS
GRADIENTS = {"R1": ("U3", "second"), "R2": ("U4", "first")}

ALL = [*UNITS, *HESSIANS, *CELLS]  # every key that `metanb bench --unit` takes
