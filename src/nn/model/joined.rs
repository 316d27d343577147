//! Two branches on one input, joined value by value: `residual`, `multiply` and `subtract`.

use crate::nn::layers::Shape;

/// How what the layers give and what the shortcut gives (the input where there is none) become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Join {
    /// Their sum.
    Residual,
    /// Their product: squeeze-and-excitation, gates. One side may be broadcast to the other.
    Multiply,
    /// The shortcut minus the layers: a denoiser that learns the noise.
    Subtract,
}

impl Join {
    const ALL: [Self; 3] = [Self::Residual, Self::Multiply, Self::Subtract];

    pub fn of(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|join| join.word() == word)
    }

    pub fn word(self) -> &'static str {
        match self {
            Self::Residual => "residual",
            Self::Multiply => "multiply",
            Self::Subtract => "subtract",
        }
    }

    /// The shape of the output, given those of the layers and of the shortcut; None where they do not fit.
    pub fn shape(self, layers: &[i64], shortcut: &[i64]) -> Option<Shape> {
        let onto = |small: &[i64], large: &[i64]| {
            small.len() == large.len() && small.iter().zip(large).all(|(a, b)| a == b || *a == 1)
        };
        match self {
            _ if layers == shortcut => Some(layers.to_vec()),
            Self::Multiply if onto(layers, shortcut) => Some(shortcut.to_vec()),
            Self::Multiply if onto(shortcut, layers) => Some(layers.to_vec()),
            _ => None,
        }
    }

    /// Why `layers` does not go with `other`, the shape of `what`.
    pub fn misfit(self, layers: &str, what: &str, other: &str) -> String {
        match self {
            Self::Residual => format!(
                "residual adds what its layers give, {layers}, to {what}, {other}: they must be equal; give it a \
                 `shortcut` with the same channels and stride"
            ),
            Self::Multiply => format!(
                "multiply takes what its layers give, {layers}, times {what}, {other}: each extent must be equal \
                 or 1 on one side, as [C, 1, 1] is beside [C, H, W]; mend the layers or give it a `shortcut`"
            ),
            Self::Subtract => format!(
                "subtract takes what its layers give, {layers}, from {what}, {other}: they must be equal; give it \
                 a `shortcut` with the same channels and stride"
            ),
        }
    }

    /// The expression in Python and TorchScript.
    pub fn python(self, layers: &str, shortcut: &str) -> String {
        match self {
            Self::Residual => format!("{layers} + {shortcut}"),
            Self::Multiply => format!("{layers} * {shortcut}"),
            Self::Subtract => format!("{shortcut} - {layers}"),
        }
    }
}
