//! Samples whose target is an image or a mask: the two travel as one picture, the target in the last
//! channels, so that a cut or a flip is the same for both.

use tch::{Kind, Tensor};

use crate::data::mask::IGNORED;
use crate::data::normalize::Normalize;

/// The same normalisation with `channels` more that stay as they are.
pub fn leave_targets(mut normalize: Normalize, channels: i64) -> Normalize {
    normalize.mean.extend((0..channels).map(|_| 0.0));
    normalize.std.extend((0..channels).map(|_| 1.0));
    normalize
}

/// `[B, C + channels, H, W]` as `[B, C, H, W]` and `[B, channels, H, W]`.
pub fn part(xs: &Tensor, channels: i64) -> (Tensor, Tensor) {
    let own = xs.size()[1] - channels;
    (xs.narrow(1, 0, own).contiguous(), xs.narrow(1, own, channels).contiguous())
}

/// What [`Picture::repeated`](crate::data::Picture::repeated) had enlarged, `[B, C, H, W]`, at its own size.
pub fn shrink(xs: Tensor, scale: i64) -> Tensor {
    match scale {
        1 => xs,
        _ => xs.slice(2, 0, None, scale).slice(3, 0, None, scale).contiguous(),
    }
}

/// Classes as levels, `[B, 1, H, W]` in [0, 1], as int64 `[B, H, W]`; what is ignored as -100, PyTorch's
/// `ignore_index`.
pub fn mask(levels: &Tensor) -> Tensor {
    let classes = (levels * 255.0).round().to_kind(Kind::Int64).squeeze_dim(1);
    let ignored = classes.eq(i64::from(IGNORED));
    classes.masked_fill(&ignored, -100)
}
