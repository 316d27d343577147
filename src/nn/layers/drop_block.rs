//! Dropout of squares, as `torchvision.ops.DropBlock2d` (Ghiasi, Lin and Le, 2018).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::nn::{self, ModuleT};
use tch::{Kind, Tensor};

use super::args::{argument, image, in_range, not_negative, same, share};
use super::{Layer, Shape, ShapeError, TorchModule};

/// Zeroes squares of each channel in training, so that values go with probability `p`, and multiplies the
/// others so that the sum of the mask stays.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DropBlock2d {
    /// Probability of a value.
    #[schemars(range(min = 0, max = 1))]
    pub p: f64,
    /// The side of a square, an odd number; in smaller images it is theirs.
    #[schemars(range(min = 1))]
    pub block_size: i64,
    /// Added to the sum of the mask, which may be 0.
    #[serde(default = "eps")]
    #[schemars(range(min = 0))]
    pub eps: f64,
}

fn eps() -> f64 {
    1e-6
}

const DEFINITION: &str = "\
class DropBlock2d(nn.Module):
    \"\"\"Zeroes squares of each channel in training, so that values go with probability `p`.\"\"\"

    def __init__(self, p, block_size, eps=1e-06):
        super().__init__()
        self.p, self.block_size, self.eps = p, block_size, eps

    def forward(self, x):
        if not self.training or self.p == 0:
            return x
        n, c, h, w = x.size()
        size = min(self.block_size, h, w)
        rows, columns = h - size + 1, w - size + 1
        gamma = (self.p * h * w) / (size**2 * (rows * columns))
        noise = torch.empty((n, c, rows, columns), dtype=x.dtype, device=x.device).bernoulli_(gamma)
        noise = 1 - F.max_pool2d(F.pad(noise, [size // 2] * 4), size, 1, size // 2)
        return x * noise * (noise.numel() / (self.eps + noise.sum()))
";

/// The probability that a place becomes the centre of a square of side `size`.
fn gamma(p: f64, size: i64, height: i64, width: i64) -> f64 {
    let centres = (height - size + 1) * (width - size + 1);
    (p * height as f64 * width as f64) / (size * size * centres) as f64
}

impl DropBlock2d {
    fn size(&self, height: i64, width: i64) -> i64 {
        self.block_size.min(height).min(width)
    }
}

impl Layer for DropBlock2d {
    fn output_shape(&self, input: &[i64]) -> Result<Shape, ShapeError> {
        let [_, height, width] = image(input)?;
        share("p", self.p)?;
        in_range("block_size", self.block_size, 1)?;
        not_negative("eps", self.eps)?;
        let size = self.size(height, width);
        if size % 2 == 0 {
            let message = format!("{size} is even for a {height}x{width} input: expected an odd number");
            return Err(argument("block_size", message));
        }
        same(input)
    }

    fn torchscript(&self, _input: &[i64]) -> String {
        if self.p == 0.0 {
            return String::new();
        }
        let &Self { p, block_size, eps } = self;
        format!(
            "\
if self.training:
    h = x.size(2)
    w = x.size(3)
    size = min(min({block_size}, h), w)
    rows = h - size + 1
    columns = w - size + 1
    noise = torch.empty([x.size(0), x.size(1), rows, columns], dtype=x.dtype, device=x.device)
    noise.bernoulli_(({p:?} * h * w) / (size * size * (rows * columns)))
    half = size // 2
    noise = torch.constant_pad_nd(noise, [half, half, half, half])
    noise = 1 - torch.max_pool2d(noise, [size, size], [1, 1], [half, half])
    x = x * noise * ((noise.sum() + {eps:?}).reciprocal() * noise.numel())"
        )
    }

    fn torch_module(&self, _input: &[i64]) -> TorchModule {
        TorchModule::defined("DropBlock2d", DEFINITION)
            .with("p", self.p)
            .with("block_size", self.block_size)
            .or("eps", self.eps, eps())
    }

    fn is_random(&self) -> bool {
        self.p > 0.0
    }

    fn build(&self, _path: &nn::Path, _input: &[i64]) -> Box<dyn ModuleT> {
        Box::new(Squares(self.clone()))
    }
}

#[derive(Debug)]
struct Squares(DropBlock2d);

impl ModuleT for Squares {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Tensor {
        let (spec, shape) = (&self.0, xs.size());
        let (&[n, c, height, width], true) = (shape.as_slice(), train && spec.p > 0.0) else {
            return xs.shallow_clone();
        };
        let size = spec.size(height, width);
        let centres = [n, c, height - size + 1, width - size + 1];
        // Drawn and divided as torchvision does: equal seeds give equal bits.
        let centres = Tensor::empty(centres, (xs.kind(), xs.device()))
            .bernoulli_float_(gamma(spec.p, size, height, width))
            .constant_pad_nd([size / 2; 4]);
        let mask: Tensor = 1 - centres.max_pool2d([size; 2], [1, 1], [size / 2; 2], [1, 1], false);
        let kept: Tensor = mask.sum(None::<Kind>) + spec.eps;
        xs * &mask * (kept.reciprocal() * mask.numel() as i64)
    }
}
