from .plucker import orthonormalize as orthonormalize, principal_angles as principal_angles, plucker_embedding as plucker_embedding, plucker_inner_product as plucker_inner_product, plucker_relations as plucker_relations
from .kernels import distance as distance, pairwise_distances as pairwise_distances, GrassmannKernel as GrassmannKernel, gram as gram, kernel_health as kernel_health, KernelDegenerateWarning as KernelDegenerateWarning
from .lora_io import LoRA as LoRA, LoRACollection as LoRACollection, LoRAFormatError as LoRAFormatError, LoRAUpdate as LoRAUpdate
from .formats import load as load, load_all as load_all
from .writers import resize as resize, save as save
from .plucker import orthonormalize as orthonormalize, principal_angles as principal_angles
from .plucker import plucker_basis as plucker_basis, plucker_embedding as plucker_embedding
from .plucker import plucker_inner_product as plucker_inner_product, plucker_relations as plucker_relations
from .kernels import distance as distance, pairwise_distances as pairwise_distances, GrassmannKernel as GrassmannKernel
from .kernels import gram as gram, kernel_health as kernel_health, KernelDegenerateWarning as KernelDegenerateWarning
from .topic_lora import TopicLinear as TopicLinear
from .geolora import GeoLoRAStep as GeoLoRAStep, geolora_step as geolora_step
