//! How a network is exported; no format takes all of it.

use clap::Args;
use tch::Kind;

#[derive(Args, Clone, Debug, Default)]
pub struct ExportOptions {
    /// Write weights as float16
    #[arg(long, conflicts_with = "bf16")]
    pub half: bool,
    /// Write weights as bfloat16
    #[arg(long)]
    pub bf16: bool,
    /// TorchScript: weights as constants, evaluation only, batch norms folded into convolutions
    #[arg(long)]
    pub freeze: bool,
    /// TorchScript: --freeze, and of torch.jit.optimize_for_inference what a file can hold (linear weights
    /// transposed). Its oneDNN half cannot be saved: call it on the loaded file
    #[arg(long)]
    pub optimize: bool,
    /// TorchScript, ONNX: take pictures of any size as uint8 [N, C, H, W] (TorchScript also as floats in
    /// 0..1); resize (bilinear, antialiased) and normalise them as the run did; answer in the units of the
    /// data where `data.normalize_target` scaled them
    #[arg(long)]
    pub preprocess: bool,
    /// TorchScript, .pt2, ONNX: answer probabilities, by the temperature that `calibrate` found where it did
    #[arg(long)]
    pub softmax: bool,
    /// The same of a run of `task: multi_label`
    #[arg(long, conflicts_with = "softmax")]
    pub sigmoid: bool,
}

impl ExportOptions {
    /// The dtype of the file's weights, where it is not their own.
    pub fn kind(&self) -> Option<Kind> {
        match (self.half, self.bf16) {
            (true, _) => Some(Kind::Half),
            (_, true) => Some(Kind::BFloat16),
            _ => None,
        }
    }

    /// The options that were given.
    pub fn given(&self) -> Vec<&'static str> {
        let &Self { half, bf16, freeze, optimize, preprocess, softmax, sigmoid } = self;
        let all = [
            (half, "--half"),
            (bf16, "--bf16"),
            (freeze, "--freeze"),
            (optimize, "--optimize"),
            (preprocess, "--preprocess"),
            (softmax, "--softmax"),
            (sigmoid, "--sigmoid"),
        ];
        all.into_iter().filter(|(given, _)| *given).map(|(_, option)| option).collect()
    }
}
