//! Layers: a file each (relatives share one) with spec, shape rule, parameters and tch module, and a row of `layers!`.

mod activation;
mod adaptive_pool;
mod args;
mod avg_pool2d;
mod batch_norm;
mod channel_shuffle;
pub(crate) mod channels;
mod codegen;
mod conv2d;
mod conv_transpose2d;
mod drop_block;
mod dropout;
mod flatten;
mod fused;
mod group_norm;
pub(crate) mod init;
mod instance_norm;
mod layer_norm;
mod linear;
mod max_pool2d;
mod pad2d;
mod parametrized;
mod permute;
mod pixel_shuffle;
mod prelu;
pub(crate) mod quantize;
pub(crate) mod reparametrize;
mod reshape;
mod scale;
mod slice_channels;
mod stochastic_depth;
mod subsample_pad;
mod switch;
mod upsample;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};
use tch::Tensor;
use tch::nn::{self, ModuleT};

pub use activation::Activation;
pub(crate) use args::shown;
use channels::{ChannelFlow, Kept};
pub use codegen::{Arg, TorchModule};
pub(crate) use fused::{FusedConvBn, Normed};
pub(crate) use switch::{Freezable, Switch};
pub(crate) use upsample::Upsample;

/// The shape of one sample, without the batch dimension: `[C, H, W]` or `[F]`.
pub type Shape = Vec<i64>;

/// What a tensor of a network is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ParamKind {
    /// The weight of a convolution or linear layer: the only kind that is penalised by default.
    Weight,
    Bias,
    /// Scale and shift of a normalisation, and other one-dimensional parameters.
    Norm,
    /// Not trained: running statistics.
    Buffer,
}

/// A named tensor of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Param {
    /// As in PyTorch's `state_dict()`: `layer1.0.conv1.weight`. Within a layer: `weight`.
    pub name: String,
    pub shape: Vec<i64>,
    pub kind: ParamKind,
    /// Not trained (`init_from: {freeze: …}`).
    pub frozen: bool,
}

impl Param {
    pub(crate) fn new(name: &str, shape: impl Into<Vec<i64>>, kind: ParamKind) -> Self {
        Self { name: name.into(), shape: shape.into(), kind, frozen: false }
    }

    /// Whether training changes it by gradients.
    pub fn is_trainable(&self) -> bool {
        self.kind != ParamKind::Buffer && !self.frozen
    }
}

/// Why a layer cannot be used at its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShapeError {
    /// The input has the wrong form: what the layer wants, and the remedy.
    Input { wants: String, remedy: String },
    /// An argument is out of range or does not go with the input.
    Argument { name: &'static str, message: String },
}

/// What every layer can say about itself. `input` is the shape of one sample that passed
/// [`Layer::output_shape`].
pub trait Layer {
    /// The shape rule; it also refuses arguments that libtorch would refuse. Never overflows: a size beyond
    /// i64 comes out as `i64::MAX`, which the model refuses.
    fn output_shape(&self, input: &[i64]) -> Result<Shape, ShapeError>;

    /// Parameters and buffers in the order of PyTorch's `state_dict()`.
    fn params(&self, _input: &[i64]) -> Vec<Param> {
        Vec::new()
    }

    /// Whether its tensor belongs to the module around it, beside other layers' tensors, where its own name
    /// adds nothing to the parameter names: a bare `nn.Parameter` and no module.
    fn is_bare_parameter(&self) -> bool {
        false
    }

    /// The kind of the layer whose weight it computes from other tensors, where it does that.
    fn wraps(&self) -> Option<&'static str> {
        None
    }

    /// That layer, and the weight with which it answers as this one does in evaluation, out of the tensors that
    /// `find` gives by this layer's own names.
    fn folded(&self, _find: &dyn Fn(&str) -> Tensor) -> Option<(LayerSpec, Tensor)> {
        None
    }

    /// Multiply-accumulates of one sample in convolutions and linear maps.
    fn multiply_adds(&self, _input: &[i64], _output: &[i64]) -> u64 {
        0
    }

    /// The smallest batch whose statistics make sense in training.
    fn min_batch(&self, _input: &[i64]) -> i64 {
        1
    }

    /// How the channels of its output hang on those of its input.
    fn channel_flow(&self, _input: &[i64]) -> ChannelFlow {
        ChannelFlow::Opaque
    }

    /// The same layer where only some channels are kept; None where its arguments say no number of channels.
    fn with_channels(&self, _input: &[i64], _kept: Kept) -> Option<LayerSpec> {
        None
    }

    /// Whether it draws random numbers in training.
    fn is_random(&self) -> bool {
        false
    }

    /// Its computation as TorchScript: lines that turn the tensor `x` into the output, over `self.weight` and
    /// the other tensors of [`Layer::params`] and `self.training`, with libtorch's own operators only
    /// (`torch.conv2d`). As free in batch and image size as the module of [`Layer::build`].
    fn torchscript(&self, input: &[i64]) -> String;

    /// The PyTorch module with the same arithmetic and the same tensor names.
    fn torch_module(&self, input: &[i64]) -> TorchModule;

    /// Makes the module, its tensors under `path`, drawing from torch's generator in PyTorch's order.
    /// Panics as tch does where libtorch runs out of memory.
    fn build(&self, path: &nn::Path, input: &[i64]) -> Box<dyn ModuleT>;
}

macro_rules! layers {
    ($($kind:literal => $variant:ident($spec:ty),)*) => {
        /// What a layer is, as declared: `{conv2d: {out_channels: 16, kernel_size: 3}}`.
        #[derive(Clone, Debug, Deserialize, JsonSchema)]
        pub enum LayerSpec {
            $(#[serde(rename = $kind)] $variant($spec),)*
            // Decoded apart: serde's untagged variants lose the error texts of all the others.
            #[serde(skip)]
            Activation(Activation),
        }

        impl Serialize for LayerSpec {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                match self {
                    $(Self::$variant(layer) => serializer.collect_map([($kind, layer)]),)*
                    Self::Activation(activation) => activation.serialize(serializer),
                }
            }
        }

        impl LayerSpec {
            /// The name of the layer in YAML.
            pub fn kind(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => $kind,)*
                    Self::Activation(activation) => activation.kind(),
                }
            }

            pub(crate) fn layer(&self) -> &dyn Layer {
                match self {
                    $(Self::$variant(layer) => layer,)*
                    Self::Activation(activation) => activation,
                }
            }
        }

        const KINDS: &[&str] = &[$($kind),*];
    };
}

layers! {
    "adaptive_avg_pool2d" => AdaptiveAvgPool2d(adaptive_pool::AdaptiveAvgPool2d),
    "adaptive_max_pool2d" => AdaptiveMaxPool2d(adaptive_pool::AdaptiveMaxPool2d),
    "avg_pool2d" => AvgPool2d(avg_pool2d::AvgPool2d),
    "batch_norm1d" => BatchNorm1d(batch_norm::BatchNorm1d),
    "batch_norm2d" => BatchNorm2d(batch_norm::BatchNorm2d),
    "channel_shuffle" => ChannelShuffle(channel_shuffle::ChannelShuffle),
    "chunk" => Chunk(slice_channels::Chunk),
    "conv2d" => Conv2d(conv2d::Conv2d),
    "conv_transpose2d" => ConvTranspose2d(conv_transpose2d::ConvTranspose2d),
    "drop_block2d" => DropBlock2d(drop_block::DropBlock2d),
    "dropout" => Dropout(dropout::Dropout),
    "dropout2d" => Dropout2d(dropout::Dropout2d),
    "flatten" => Flatten(flatten::Flatten),
    "group_norm" => GroupNorm(group_norm::GroupNorm),
    "instance_norm2d" => InstanceNorm2d(instance_norm::InstanceNorm2d),
    "layer_norm" => LayerNorm(layer_norm::LayerNorm),
    "layer_norm2d" => LayerNorm2d(layer_norm::LayerNorm2d),
    "linear" => Linear(linear::Linear),
    "max_pool2d" => MaxPool2d(max_pool2d::MaxPool2d),
    "permute" => Permute(permute::Permute),
    "pixel_shuffle" => PixelShuffle(pixel_shuffle::PixelShuffle),
    "pixel_unshuffle" => PixelUnshuffle(pixel_shuffle::PixelUnshuffle),
    "prelu" => Prelu(prelu::Prelu),
    "quantize" => Quantize(quantize::Quantize),
    "reflection_pad2d" => ReflectionPad2d(pad2d::ReflectionPad2d),
    "reparametrize" => Reparametrize(reparametrize::Reparametrize),
    "replication_pad2d" => ReplicationPad2d(pad2d::ReplicationPad2d),
    "reshape" => Reshape(reshape::Reshape),
    "scale" => Scale(scale::Scale),
    "slice_channels" => SliceChannels(slice_channels::SliceChannels),
    "spectral_norm" => SpectralNorm(parametrized::SpectralNorm),
    "stochastic_depth" => StochasticDepth(stochastic_depth::StochasticDepth),
    "subsample_pad" => SubsamplePad(subsample_pad::SubsamplePad),
    "unflatten" => Unflatten(reshape::Unflatten),
    "upsample" => Upsample(Upsample),
    "weight_norm" => WeightNorm(parametrized::WeightNorm),
    "weight_standardization" => WeightStandardization(parametrized::WeightStandardization),
    "zero_pad2d" => ZeroPad2d(pad2d::ZeroPad2d),
}

impl LayerSpec {
    /// Every layer's name in YAML.
    pub fn kinds() -> impl Iterator<Item = &'static str> {
        KINDS.iter().chain(Activation::KINDS).copied()
    }

    /// Whether `kind` is an [`Activation`], to be decoded as one.
    pub(crate) fn is_activation(kind: &str) -> bool {
        Activation::KINDS.contains(&kind)
    }
}
