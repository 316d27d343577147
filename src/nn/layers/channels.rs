//! How the channels of a layer's output hang on those of its input, for removing channels that do nothing.

/// What one layer does with channels: dimension 0 of a sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChannelFlow {
    /// All channels count, or their number does: none can be removed before or after it.
    Opaque,
    /// Each output is a sum over all inputs, weighted by `weight`.
    Sum {
        /// The dimension of `weight` that counts outputs.
        output_dim: i64,
        /// The dimension of `weight` that counts inputs.
        input_dim: i64,
        /// Whether an input channel with one value everywhere adds one value everywhere: there is no border of zeros.
        is_uniform: bool,
    },
    /// Each output depends on some inputs only, and is removed together with them.
    Tied {
        /// By output channel, the inputs that it depends on; an output without any is 0 everywhere.
        sources: Vec<Vec<usize>>,
        /// The tensor by whose slice `[i]` output i is multiplied before anything is added.
        scale: Option<String>,
    },
}

impl ChannelFlow {
    /// Output i depends on input i.
    pub fn each(channels: i64) -> Self {
        Self::map(channels, |output| output)
    }

    /// The same with the tensor `scale` of a value per channel.
    pub fn scaled(channels: i64, scale: Option<&str>) -> Self {
        let sources = (0..channels as usize).map(|output| vec![output]).collect();
        Self::Tied { sources, scale: scale.map(str::to_owned) }
    }

    /// Output i of `outputs` depends on input `source(i)`.
    pub fn map(outputs: i64, source: impl Fn(usize) -> usize) -> Self {
        Self::Tied {
            sources: (0..outputs as usize).map(|output| vec![source(output)]).collect(),
            scale: None,
        }
    }

    /// `outputs` in `groups` equal blocks, each of which depends on its block of `inputs`.
    pub fn blocks(inputs: i64, outputs: i64, groups: i64, scale: Option<&str>) -> Self {
        let [inputs, outputs] = [inputs, outputs].map(|channels| (channels / groups) as usize);
        let block = |output: usize| (output / outputs * inputs..(output / outputs + 1) * inputs).collect();
        let sources = (0..outputs * groups as usize).map(block).collect();
        Self::Tied { sources, scale: scale.map(str::to_owned) }
    }
}

/// Which channels before and after a layer are kept.
#[derive(Clone, Copy, Debug)]
pub struct Kept<'a> {
    pub inputs: &'a [bool],
    pub outputs: &'a [bool],
}

/// How many are kept.
pub fn count(kept: &[bool]) -> i64 {
    kept.iter().filter(|kept| **kept).count() as i64
}
