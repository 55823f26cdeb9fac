# What the door gives, for type checkers; at run time a name is loaded when it is asked for.
from analysis.notebook import load as load
from jobs.notebook import sweep as sweep
from lorae.augmentation import Augment as Augment
from lorae.draws import (
    SWAG as SWAG,
)
from lorae.draws import (
    TFB as TFB,
)
from lorae.draws import (
    Laplace as Laplace,
)
from lorae.draws import (
    MCDropout as MCDropout,
)
from lorae.draws import (
    Posterior as Posterior,
)
from lorae.engine.ensembles import Ensemble as Ensemble
from lorae.methods import (
    BatchEnsemble as BatchEnsemble,
)
from lorae.methods import (
    Blob as Blob,
)
from lorae.methods import (
    Full as Full,
)
from lorae.methods import (
    Gaussian as Gaussian,
)
from lorae.methods import (
    InContext as InContext,
)
from lorae.methods import (
    Kaiming as Kaiming,
)
from lorae.methods import (
    LastLayer as LastLayer,
)
from lorae.methods import (
    Lora as Lora,
)
from lorae.methods import (
    Orthogonal as Orthogonal,
)
from lorae.methods import (
    PVera as PVera,
)
from lorae.methods import (
    Rank1BNN as Rank1BNN,
)
from lorae.methods import (
    Vera as Vera,
)
from lorae.methods import (
    Xavier as Xavier,
)
from lorae.regularizers import (
    KL as KL,
)
from lorae.regularizers import (
    AdapterDropout as AdapterDropout,
)
from lorae.regularizers import (
    ClassWeights as ClassWeights,
)
from lorae.regularizers import (
    DecayB as DecayB,
)
from lorae.regularizers import (
    EarlyStopping as EarlyStopping,
)
from lorae.regularizers import (
    Masksembles as Masksembles,
)
from lorae.search import (
    ASHA as ASHA,
)
from lorae.search import (
    LogUniform as LogUniform,
)
from lorae.search import (
    MedianStopping as MedianStopping,
)
from lorae.search import (
    Optuna as Optuna,
)
from lorae.search import (
    Uniform as Uniform,
)
from lorae.sources import Files as Files
from lorae.sources import Hub as Hub
from lorae.tasks.scoring import (
    Generate as Generate,
)
from lorae.tasks.scoring import (
    Head as Head,
)
from lorae.tasks.scoring import (
    LabelWords as LabelWords,
)
from lorae.tasks.scoring import (
    Letters as Letters,
)
from lorae.tasks.scoring import (
    OptionLikelihood as OptionLikelihood,
)
from lorae.trial import (
    AdamW as AdamW,
)
from lorae.trial import (
    Budget as Budget,
)
from lorae.trial import (
    Diversity as Diversity,
)
from lorae.trial import (
    Sweep as Sweep,
)
from lorae.trial import (
    Times as Times,
)
from lorae.trial import (
    Trial as Trial,
)

__version__: str
