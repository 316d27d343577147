//! Convolutions and linear maps whose weight is computed from other tensors, as by
//! `torch.nn.utils.parametrizations`: weight normalisation (Salimans and Kingma, 2016) and spectral
//! normalisation (Miyato et al., 2018); and weight standardisation as timm's `StdConv2d` (Qiao et al., 2019) and
//! `ScaledStdConv2d` (Brock, De and Smith, 2021).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::nn::{self, ModuleT};
use tch::{Device, Kind, Tensor, no_grad};

use super::args::{argument, in_range, not_negative};
use super::codegen::Literal;
use super::conv_transpose2d::ConvTranspose2d;
use super::conv2d::Conv2d;
use super::linear::Linear;
use super::{Layer, LayerSpec, Param, ParamKind, Shape, ShapeError, TorchModule, init};

/// The layer whose weight is computed.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Inner {
    Conv2d(Conv2d),
    ConvTranspose2d(ConvTranspose2d),
    Linear(Linear),
}

/// The weight as g·v/‖v‖, as `torch.nn.utils.parametrizations.weight_norm`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WeightNorm {
    /// The layer: `{conv2d: {…}}`, `{conv_transpose2d: {…}}` or `{linear: {…}}`.
    pub module: Inner,
    /// The dimension of the weight that has a g for each of its indices; null for a single g.
    #[serde(default = "first")]
    pub dim: Option<i64>,
}

/// The weight divided by its largest singular value, as `torch.nn.utils.parametrizations.spectral_norm`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SpectralNorm {
    /// The layer: `{conv2d: {…}}`, `{conv_transpose2d: {…}}` or `{linear: {…}}`.
    pub module: Inner,
    /// Steps of the power method for each forward pass in training.
    #[serde(default = "one")]
    #[schemars(range(min = 1))]
    pub n_power_iterations: i64,
    /// The least norm that the power method divides by.
    #[serde(default = "tiny")]
    #[schemars(range(min = 0))]
    pub eps: f64,
    /// The dimension of the outputs in the weight: 0 when absent, 1 for `conv_transpose2d`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dim: Option<i64>,
}

/// Each filter with mean 0 and variance 1, as timm's `StdConv2d`, or `ScaledStdConv2d` with `gain`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WeightStandardization {
    /// The layer: `{conv2d: {…}}`.
    pub module: Inner,
    /// Added to the variance.
    #[serde(default = "small")]
    #[schemars(range(min = 0))]
    pub eps: f64,
    /// Multiplies each filter by a learned gain, by `gamma` and by 1/√fan_in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gain: Option<Gain>,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Gain {
    /// The factor that the activation function before it wants.
    #[serde(default = "unit")]
    pub gamma: f64,
    /// What the learned gains begin with.
    #[serde(default = "unit")]
    pub gain_init: f64,
}

fn first() -> Option<i64> {
    Some(0)
}

fn one() -> i64 {
    1
}

fn tiny() -> f64 {
    1e-12
}

fn small() -> f64 {
    1e-6
}

fn unit() -> f64 {
    1.0
}

impl Inner {
    fn layer(&self) -> &dyn Layer {
        match self {
            Self::Conv2d(layer) => layer,
            Self::ConvTranspose2d(layer) => layer,
            Self::Linear(layer) => layer,
        }
    }

    fn spec(&self) -> LayerSpec {
        match self.clone() {
            Self::Conv2d(layer) => LayerSpec::Conv2d(layer),
            Self::ConvTranspose2d(layer) => LayerSpec::ConvTranspose2d(layer),
            Self::Linear(layer) => LayerSpec::Linear(layer),
        }
    }

    fn apply(&self, xs: &Tensor, ws: &Tensor, bs: Option<&Tensor>) -> Tensor {
        match self {
            Self::Conv2d(layer) => layer.apply(xs, ws, bs),
            Self::ConvTranspose2d(layer) => layer.apply(xs, ws, bs),
            Self::Linear(_) => Linear::apply(xs, ws, bs),
        }
    }

    fn weight_shape(&self, input: &[i64]) -> Shape {
        self.layer().params(input).into_iter().next().map(|param| param.shape).unwrap_or_default()
    }

    fn bias(&self, input: &[i64]) -> Option<Param> {
        self.layer().params(input).into_iter().find(|param| param.name == "bias")
    }

    /// Initial values, drawn as for the layer without its parametrization.
    fn drawn(&self, input: &[i64]) -> Vec<(String, Tensor)> {
        let store = nn::VarStore::new(Device::Cpu);
        let _layer = self.layer().build(&store.root(), input);
        store.variables().into_iter().map(|(name, tensor)| (name, tensor.detach())).collect()
    }
}

/// How a weight follows from other tensors.
trait Parametrization {
    fn inner(&self) -> &Inner;

    /// Refuses arguments that do not go with a weight of this shape.
    fn check(&self, shape: &[i64]) -> Result<(), ShapeError>;

    /// The tensors in PyTorch's order, the bias included.
    fn tensors(&self, shape: &[i64], bias: Option<Param>) -> Vec<Param>;

    /// What those other than the bias begin with where the weight begins with `weight`.
    fn begin(&self, weight: &Tensor) -> Vec<(&'static str, Tensor)>;

    /// The weight as a function of the tensors that `find` gives by name.
    fn weight(&self, find: &dyn Fn(&str) -> Tensor) -> Weight;

    /// Lines of TorchScript that set `weight`.
    fn script(&self, shape: &[i64]) -> String;

    /// The PyTorch module, made of that of the layer.
    fn twin(&self, layer: TorchModule) -> TorchModule;
}

impl<T: Parametrization> Layer for T {
    fn output_shape(&self, input: &[i64]) -> Result<Shape, ShapeError> {
        let output = self.inner().layer().output_shape(input)?;
        self.check(&self.inner().weight_shape(input))?;
        Ok(output)
    }

    fn params(&self, input: &[i64]) -> Vec<Param> {
        self.tensors(&self.inner().weight_shape(input), self.inner().bias(input))
    }

    fn multiply_adds(&self, input: &[i64], output: &[i64]) -> u64 {
        self.inner().layer().multiply_adds(input, output)
    }

    fn wraps(&self) -> Option<&'static str> {
        Some(self.inner().spec().kind())
    }

    fn folded(&self, find: &dyn Fn(&str) -> Tensor) -> Option<(LayerSpec, Tensor)> {
        Some((self.inner().spec(), no_grad(|| self.weight(find).compute(false))))
    }

    fn torchscript(&self, input: &[i64]) -> String {
        let layer = self.inner().layer().torchscript(input).replace("self.weight", "weight");
        format!("{}\n{layer}", self.script(&self.inner().weight_shape(input)))
    }

    fn torch_module(&self, input: &[i64]) -> TorchModule {
        self.twin(self.inner().layer().torch_module(input))
    }

    fn build(&self, path: &nn::Path, input: &[i64]) -> Box<dyn ModuleT> {
        let drawn = self.inner().drawn(input);
        let of = |name: &str| drawn.iter().find(|(known, _)| known == name).map(|(_, tensor)| tensor);
        let begin = of("weight").map(|weight| no_grad(|| self.begin(weight))).unwrap_or_default();
        let mut made: Vec<(String, Tensor)> = Vec::new();
        for param in self.params(input) {
            let (before, last) = param.name.rsplit_once('.').unwrap_or(("", &param.name));
            let segments = before.split('.').filter(|segment| !segment.is_empty());
            let place = segments.fold(path.clone(), |place, segment| place / segment);
            let zeros = Tensor::zeros(&param.shape, (path.kind(), path.device()));
            let tensor = place.add(last, zeros, param.kind != ParamKind::Buffer);
            let value = begin.iter().find(|(name, _)| *name == param.name).map(|(_, value)| value);
            if let Some(value) = value.or_else(|| of(&param.name)) {
                init::fill(&tensor, |start| start.copy_(value));
            }
            made.push((param.name, tensor));
        }
        let find = |name: &str| {
            let found = made.iter().find(|(known, _)| known == name);
            found.map_or_else(Tensor::new, |(_, tensor)| tensor.shallow_clone())
        };
        let bias = self.inner().bias(input).map(|bias| find(&bias.name));
        Box::new(Parametrized { inner: self.inner().clone(), weight: self.weight(&find), bias })
    }
}

#[derive(Debug)]
struct Parametrized {
    inner: Inner,
    weight: Weight,
    bias: Option<Tensor>,
}

impl ModuleT for Parametrized {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Tensor {
        self.inner.apply(xs, &self.weight.compute(train), self.bias.as_ref())
    }
}

#[derive(Debug)]
enum Weight {
    /// g·v/‖v‖; the dimension is -1 for a single g.
    Normed {
        g: Tensor,
        v: Tensor,
        dim: i64,
    },
    Spectral {
        original: Tensor,
        u: Tensor,
        v: Tensor,
        dim: i64,
        iterations: i64,
        eps: f64,
    },
    /// The gain of each filter, and what it is multiplied by.
    Standardized {
        weight: Tensor,
        gain: Option<(Tensor, f64)>,
        eps: f64,
    },
}

impl Weight {
    /// The weight of this forward pass; in training the vectors of the power method move.
    fn compute(&self, train: bool) -> Tensor {
        match self {
            Self::Normed { g, v, dim } => Tensor::internal_weight_norm(v, g, *dim),
            Self::Spectral { original, u, v, dim, iterations, eps } => {
                let matrix = matrix(original, *dim);
                if train {
                    no_grad(|| power_method(&matrix.detach(), u, v, *iterations, *eps));
                }
                // The next pass overwrites them before the gradient of this one may be computed.
                let (u, v) = (u.copy(), v.copy());
                original / u.dot(&matrix.mv(&v))
            }
            Self::Standardized { weight, gain, eps } => {
                let shape = weight.size();
                let gain = gain.as_ref().map(|(gain, scale)| (gain * *scale).view(-1));
                let (filters, none) = (weight.reshape([1, shape[0], -1]), None::<&Tensor>);
                let standard =
                    Tensor::batch_norm(&filters, gain.as_ref(), none, none, none, true, 0.0, *eps, true);
                standard.reshape(&shape)
            }
        }
    }
}

/// The weight as a matrix whose rows are the indices of `dim`.
fn matrix(weight: &Tensor, dim: i64) -> Tensor {
    match dim {
        0 => weight.flatten(1, -1),
        dim => weight.permute(front(dim, weight.dim() as i64)).flatten(1, -1),
    }
}

/// All dimensions, `dim` before the others.
fn front(dim: i64, rank: i64) -> Vec<i64> {
    [dim].into_iter().chain((0..rank).filter(|other| *other != dim)).collect()
}

/// A vector divided by its norm, or by `eps` where that is larger.
fn normalized(vector: Tensor, eps: f64) -> Tensor {
    let norm = vector.norm_scalaropt_dim(2i64, [0i64].as_slice(), true).clamp_min(eps);
    vector / norm
}

fn power_method(matrix: &Tensor, u: &Tensor, v: &Tensor, iterations: i64, eps: f64) {
    for _ in 0..iterations {
        u.shallow_clone().copy_(&normalized(matrix.mv(v), eps));
        v.shallow_clone().copy_(&normalized(matrix.tr().mv(u), eps));
    }
}

/// `dim` is one of the weight's.
fn is_dimension(dim: i64, shape: &[i64]) -> Result<(), ShapeError> {
    let rank = shape.len() as i64;
    if (0..rank).contains(&dim) {
        return Ok(());
    }
    Err(argument("dim", format!("{dim} is out of range: expected 0 to {}", rank - 1)))
}

const G: &str = "parametrizations.weight.original0";
const V: &str = "parametrizations.weight.original1";

impl Parametrization for WeightNorm {
    fn inner(&self) -> &Inner {
        &self.module
    }

    fn check(&self, shape: &[i64]) -> Result<(), ShapeError> {
        self.dim.map_or(Ok(()), |dim| is_dimension(dim, shape))
    }

    fn tensors(&self, shape: &[i64], bias: Option<Param>) -> Vec<Param> {
        let kept = |dim: i64| {
            let sizes = shape.iter().enumerate();
            sizes.map(|(at, size)| if at as i64 == dim { *size } else { 1 }).collect::<Vec<_>>()
        };
        let g = Param::new(G, self.dim.map_or_else(Vec::new, kept), ParamKind::Weight);
        bias.into_iter().chain([g, Param::new(V, shape, ParamKind::Weight)]).collect()
    }

    fn begin(&self, weight: &Tensor) -> Vec<(&'static str, Tensor)> {
        let norms = Tensor::norm_except_dim(weight, 2, self.dim.unwrap_or(-1));
        vec![(G, norms), (V, weight.shallow_clone())]
    }

    fn weight(&self, find: &dyn Fn(&str) -> Tensor) -> Weight {
        Weight::Normed { g: find(G), v: find(V), dim: self.dim.unwrap_or(-1) }
    }

    fn script(&self, _shape: &[i64]) -> String {
        format!("weight = torch._weight_norm(self.{V}, self.{G}, {})", self.dim.unwrap_or(-1))
    }

    fn twin(&self, layer: TorchModule) -> TorchModule {
        let dim = match self.dim {
            Some(0) => String::new(),
            dim => format!(", dim={}", dim.literal()),
        };
        layer.within("weight_norm", dim)
    }
}

const ORIGINAL: &str = "parametrizations.weight.original";
const LEFT: &str = "parametrizations.weight.0._u";
const RIGHT: &str = "parametrizations.weight.0._v";
/// Steps of the power method with which PyTorch begins.
const FIRST_STEPS: i64 = 15;

impl SpectralNorm {
    fn outputs(&self) -> i64 {
        self.dim.unwrap_or(match self.module {
            Inner::ConvTranspose2d(_) => 1,
            _ => 0,
        })
    }
}

impl Parametrization for SpectralNorm {
    fn inner(&self) -> &Inner {
        &self.module
    }

    fn check(&self, shape: &[i64]) -> Result<(), ShapeError> {
        in_range("n_power_iterations", self.n_power_iterations, 1)?;
        not_negative("eps", self.eps)?;
        is_dimension(self.outputs(), shape)
    }

    fn tensors(&self, shape: &[i64], bias: Option<Param>) -> Vec<Param> {
        let rows = shape.get(self.outputs() as usize).copied().unwrap_or(1);
        let columns = shape.iter().product::<i64>() / rows.max(1);
        let own = [
            Param::new(ORIGINAL, shape, ParamKind::Weight),
            Param::new(LEFT, [rows], ParamKind::Buffer),
            Param::new(RIGHT, [columns], ParamKind::Buffer),
        ];
        bias.into_iter().chain(own).collect()
    }

    fn begin(&self, weight: &Tensor) -> Vec<(&'static str, Tensor)> {
        let matrix = matrix(weight, self.outputs());
        let (rows, columns) = matrix.size2().unwrap_or_default();
        let [u, v] = [rows, columns].map(|size| {
            normalized(Tensor::empty([size], (Kind::Float, Device::Cpu)).normal_(0.0, 1.0), self.eps)
        });
        // Then once more as a forward pass does, with which PyTorch checks the parametrization.
        power_method(&matrix, &u, &v, FIRST_STEPS + self.n_power_iterations, self.eps);
        vec![(ORIGINAL, weight.shallow_clone()), (LEFT, u), (RIGHT, v)]
    }

    fn weight(&self, find: &dyn Fn(&str) -> Tensor) -> Weight {
        Weight::Spectral {
            original: find(ORIGINAL),
            u: find(LEFT),
            v: find(RIGHT),
            dim: self.outputs(),
            iterations: self.n_power_iterations,
            eps: self.eps,
        }
    }

    fn script(&self, shape: &[i64]) -> String {
        let rows = match self.outputs() {
            0 => "weight".to_owned(),
            dim => format!("torch.permute(weight, {:?})", front(dim, shape.len() as i64)),
        };
        let step = |vector: &str, product: &str| {
            format!(
                "        y = {product}\n        {vector}.copy_(y / torch.clamp_min(torch.norm(y, 2, [0], True), {:?}))\n",
                self.eps
            )
        };
        let (left, right) = (step("u", "torch.mv(fixed, v)"), step("v", "torch.mv(torch.t(fixed), u)"));
        format!(
            "\
weight = self.{ORIGINAL}
matrix = torch.flatten({rows}, 1)
u = getattr(self.parametrizations.weight, \"0\")._u
v = getattr(self.parametrizations.weight, \"0\")._v
if self.training:
    fixed = matrix.detach()
    for _ in range({}):
{left}{right}    u = u.clone()
    v = v.clone()
weight = weight / torch.dot(u, torch.mv(matrix, v))",
            self.n_power_iterations
        )
    }

    fn twin(&self, layer: TorchModule) -> TorchModule {
        let mut rest = String::new();
        if self.n_power_iterations != one() {
            rest += &format!(", n_power_iterations={}", self.n_power_iterations);
        }
        if self.eps != tiny() {
            rest += &format!(", eps={:?}", self.eps);
        }
        if let Some(dim) = self.dim {
            rest += &format!(", dim={dim}");
        }
        layer.within("spectral_norm", rest)
    }
}

const STANDARD: &str = "\
class StdConv2d(nn.Conv2d):
    \"\"\"A convolution by filters with mean 0 and variance 1.\"\"\"

    def __init__(self, *args, eps=1e-06, **options):
        super().__init__(*args, **options)
        self.eps = eps

    def forward(self, x):
        filters = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(filters, None, None, training=True, momentum=0.0, eps=self.eps)
        return self._conv_forward(x, weight.reshape_as(self.weight), self.bias)
";

const SCALED: &str = "\
class ScaledStdConv2d(nn.Conv2d):
    \"\"\"A convolution by filters with mean 0 and a learned variance.\"\"\"

    def __init__(self, *args, eps=1e-06, gamma=1.0, gain_init=1.0, **options):
        super().__init__(*args, **options)
        self.eps, self.scale = eps, gamma * self.weight[0].numel() ** -0.5
        self.gain = nn.Parameter(torch.full((self.out_channels, 1, 1, 1), gain_init))

    def forward(self, x):
        filters, gain = self.weight.reshape(1, self.out_channels, -1), (self.gain * self.scale).view(-1)
        weight = F.batch_norm(filters, None, None, gain, training=True, momentum=0.0, eps=self.eps)
        return self._conv_forward(x, weight.reshape_as(self.weight), self.bias)
";

/// What the learned gains are multiplied by.
fn scale(gain: &Gain, shape: &[i64]) -> f64 {
    gain.gamma * (shape.iter().skip(1).product::<i64>() as f64).powf(-0.5)
}

impl Parametrization for WeightStandardization {
    fn inner(&self) -> &Inner {
        &self.module
    }

    fn check(&self, shape: &[i64]) -> Result<(), ShapeError> {
        not_negative("eps", self.eps)?;
        if !matches!(self.module, Inner::Conv2d(_)) {
            return Err(argument("module", "must be a `conv2d`"));
        }
        if shape.iter().skip(1).product::<i64>() == 1 {
            return Err(argument("module", "has filters of one weight, which has no variance"));
        }
        match self.gain {
            Some(Gain { gamma, gain_init }) if !(gamma.is_finite() && gain_init.is_finite()) => {
                Err(argument("gain", "wants finite numbers"))
            }
            _ => Ok(()),
        }
    }

    fn tensors(&self, shape: &[i64], bias: Option<Param>) -> Vec<Param> {
        let gain = self.gain.map(|_| {
            let filters = shape.first().copied().unwrap_or(1);
            Param::new("gain", [filters, 1, 1, 1], ParamKind::Norm)
        });
        [Param::new("weight", shape, ParamKind::Weight)].into_iter().chain(bias).chain(gain).collect()
    }

    fn begin(&self, weight: &Tensor) -> Vec<(&'static str, Tensor)> {
        let filters = weight.size()[0];
        let gain = self.gain.map(|gain| {
            ("gain", Tensor::full([filters, 1, 1, 1], gain.gain_init, (Kind::Float, Device::Cpu)))
        });
        gain.into_iter().collect()
    }

    fn weight(&self, find: &dyn Fn(&str) -> Tensor) -> Weight {
        let weight = find("weight");
        let gain = self.gain.map(|gain| (find("gain"), scale(&gain, &weight.size())));
        Weight::Standardized { weight, gain, eps: self.eps }
    }

    fn script(&self, shape: &[i64]) -> String {
        let gain = self.gain.map_or_else(
            || "None".into(),
            |gain| format!("torch.flatten(self.gain * {:?})", scale(&gain, shape)),
        );
        format!(
            "\
weight = torch.reshape(self.weight, [1, {}, -1])
weight = torch.batch_norm(weight, {gain}, None, None, None, True, 0.0, {:?}, True)
weight = torch.reshape(weight, {shape:?})",
            shape.first().copied().unwrap_or(1),
            self.eps
        )
    }

    fn twin(&self, layer: TorchModule) -> TorchModule {
        let (class, definition) =
            if self.gain.is_some() { ("ScaledStdConv2d", SCALED) } else { ("StdConv2d", STANDARD) };
        let mut twin = TorchModule::defined(class, definition);
        twin.args = layer.args;
        let twin = twin.or("eps", self.eps, small());
        match self.gain {
            Some(Gain { gamma, gain_init }) => {
                twin.or("gamma", gamma, unit()).or("gain_init", gain_init, unit())
            }
            None => twin,
        }
    }
}
