from .plucker import orthonormalize as orthonormalize, principal_angles as principal_angles
from .plucker import plucker_embedding as plucker_embedding, plucker_inner_product as plucker_inner_product
from .plucker import plucker_relations as plucker_relations, plucker_basis as plucker_basis
from .kernels import distance as distance, pairwise_distances as pairwise_distances, GrassmannKernel as GrassmannKernel
from .kernels import gram as gram, kernel_health as kernel_health, KernelDegenerateWarning as KernelDegenerateWarning
from .karcher import Grassmann as Grassmann, GrassmannExact as GrassmannExact, KarcherMean as KarcherMean
from .karcher import NonUniqueMeanWarning as NonUniqueMeanWarning, chordal_mean as chordal_mean, geodesic as geodesic
from .karcher import karcher_mean as karcher_mean
from .means import flag_mean as flag_mean, karcher_median as karcher_median, principal_geodesics as principal_geodesics
from .means import streaming_mean as streaming_mean
from .clustering import KernelKMeans as KernelKMeans, GrassmannKMeans as GrassmannKMeans
from .statistics import MatrixLangevin as MatrixLangevin, fit_matrix_langevin as fit_matrix_langevin
from .statistics import frechet_variance as frechet_variance, geodesic_regression as geodesic_regression
from .statistics import two_sample_test as two_sample_test
from .lora_io import LoRA as LoRA, LoRACollection as LoRACollection, LoRAFormatError as LoRAFormatError
from .lora_io import LoRAUpdate as LoRAUpdate
from .formats import load as load, load_all as load_all
from .writers import resize as resize, save as save
from .zoo import Zoo as Zoo, load_zoo as load_zoo, train_zoo as train_zoo
from .lora_datasets import load_lora_dataset as load_lora_dataset
from .comparing import compare as compare, similarity as similarity
from .merging import layer_means as layer_means, mean_lora as mean_lora, merge as merge
from .cluster_merge import cluster as cluster, cluster_merge as cluster_merge, score_groups as score_groups
from .selection import kernel_penalty as kernel_penalty, representatives as representatives
from .selection import search_combinations as search_combinations
from .subspace_index import SubspaceIndex as SubspaceIndex
from .features import Features as Features
from .directions import Canonicalize as Canonicalize, ProjectionKernelPCA as ProjectionKernelPCA
from .directions import ReferenceAngles as ReferenceAngles, Leverage as Leverage, ProjectorSketch as ProjectorSketch
from .base_report import SubspaceReport as SubspaceReport, subspace_report as subspace_report, BaseBlock as BaseBlock
from .encoders import ContrastiveFeatures as ContrastiveFeatures, DenoisingFeatures as DenoisingFeatures, GLNet as GLNet
from .encoders import VAEFeatures as VAEFeatures
from .ablation import ablate as ablate
from .topic_lora import TopicLinear as TopicLinear
from .topics import Topics as Topics, find_topics as find_topics
from .topic_models import TopicLoRA as TopicLoRA
from .geolora import GeoLoRAStep as GeoLoRAStep, geolora_step as geolora_step
from .geolora_model import GeoLoRAConfig as GeoLoRAConfig, GeoLoRALinear as GeoLoRALinear, GeoLoRAModel as GeoLoRAModel
from .geolora_model import GeoLoRAOptimizer as GeoLoRAOptimizer
from .geolora_training import GeoLoRATrainer as GeoLoRATrainer, get_dataloaders as get_dataloaders
from .report import plot_ablation as plot_ablation, plot_angles as plot_angles, plot_base_spectrum as plot_base_spectrum
from .report import plot_dendrogram as plot_dendrogram, plot_evidence as plot_evidence, plot_gram as plot_gram
from .report import plot_history as plot_history, plot_map as plot_map, plot_scores as plot_scores
from .report import plot_silhouettes as plot_silhouettes, plot_spectra as plot_spectra, plot_topics as plot_topics
from .report import plot_truncation as plot_truncation
from .report_page import html_report as html_report
