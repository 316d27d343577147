//! The list of augmentations made ready for samples of one shape.

use std::ops::Range;

use anyhow::Result;
use tch::{Kind, Tensor};

use super::pixel_map::{PixelMap, move_pixels};
use super::{Augment, MovesPixels, Stage};
use crate::libtorch::device::upload;
use crate::util::exit_code::{ExitCode, fail};
use crate::util::rng::CounterRng;

/// A batch of pictures `[B, C, H, W]`: uint8 levels, or floating-point values with white at 1.
pub struct Pixels {
    xs: Tensor,
    kind: Kind,
}

impl Pixels {
    /// `kind` is what the network computes in.
    pub fn new(xs: Tensor, kind: Kind) -> Self {
        Self { xs, kind }
    }

    /// The values as `kind`, levels divided by 255.
    pub fn into_unit(self) -> Tensor {
        if self.xs.kind() == Kind::Uint8 {
            return self.xs.to_kind(self.kind).divide_(&Tensor::from(255.0f64).to_kind(self.kind));
        }
        self.xs.to_kind(self.kind)
    }
}

/// The augmentations of one loader.
pub struct Pipeline {
    steps: Vec<Step>,
    output: Vec<i64>,
    num_params: usize,
    /// What constant padding shows in the last channel, where that is a target.
    target_fill: Option<u8>,
}

struct Step {
    augment: Augment,
    /// Height and width of its input; [0, 0] for a table.
    sides: [usize; 2],
    /// The shape of a sample after it.
    output: Vec<i64>,
    /// Which of a sample's parameters are its own.
    param_range: Range<usize>,
    /// Made from the file, at its own resolution, before there is a sample.
    by_decoder: bool,
}

/// The random parameters of one step, for each sample of a batch.
pub struct Params {
    /// `[B, num_params]` float64 on the device of the batch.
    pub tensor: Tensor,
    values: Vec<f64>,
}

impl Params {
    /// The same numbers, sample by sample.
    pub fn rows(&self) -> impl Iterator<Item = &[f64]> {
        self.values.chunks_exact((self.tensor.size()[1] as usize).max(1))
    }
}

impl Pipeline {
    /// `input` is the shape of a sample: `[C, H, W]` or `[F]`. `files` says that samples are decoded on
    /// demand: a random resized crop is then left to the decoder. Exit 2 where a step does not suit the
    /// samples.
    pub fn new(augment: &[Augment], input: &[i64], files: bool) -> Result<Self> {
        let mut pipeline =
            Self { steps: Vec::new(), output: input.to_vec(), num_params: 0, target_fill: None };
        for (place, augment) in augment.iter().enumerate() {
            pipeline.push(augment, files).map_err(|reason| {
                let name = augment.name();
                fail(
                    ExitCode::Usage,
                    format!("augment.{place}.{name}: samples are {:?}: {reason}", pipeline.output),
                )
            })?;
        }
        Ok(pipeline)
    }

    fn push(&mut self, augment: &Augment, files: bool) -> Result<(), String> {
        let step = augment.augmentation();
        let output = step.output_shape(&self.output)?;
        let by_decoder = files && augment.crops_original();
        if by_decoder && !self.steps.is_empty() {
            return Err("files are cropped while they are decoded; make this the first step".into());
        }
        let sides = match *self.output {
            [_, height, width] => [height as usize, width as usize],
            _ => [0, 0],
        };
        let param_range = self.num_params..self.num_params + step.num_params();
        self.num_params = param_range.end;
        self.output.clone_from(&output);
        self.steps.push(Step { augment: augment.clone(), sides, output, param_range, by_decoder });
        Ok(())
    }

    /// The same, for samples whose last channel is a mask: where a crop pads with a constant, the mask gets
    /// `fill`.
    pub fn filling_targets_with(self, fill: u8) -> Self {
        Self { target_fill: Some(fill), ..self }
    }

    pub fn target_fill(&self) -> Option<u8> {
        self.target_fill
    }

    /// The shape of a sample after all steps.
    pub fn output(&self) -> &[i64] {
        &self.output
    }

    /// How many parameters a sample has.
    pub fn num_params(&self) -> usize {
        self.num_params
    }

    /// Whether the first step is made by the decoder: the first four parameters of a sample are then the top,
    /// left, height and width of a rectangle of the file's picture.
    pub fn crops_files(&self) -> bool {
        self.steps.first().is_some_and(|step| step.by_decoder)
    }

    /// The shape of a sample as it comes from the source: after the decoder's own crop.
    pub fn decoded(&self, input: &[i64]) -> Vec<i64> {
        match self.steps.first() {
            Some(step) if step.by_decoder => step.output.clone(),
            _ => input.to_vec(),
        }
    }

    /// Draws the parameters of one sample and appends them. `file` is the size of the picture in the file,
    /// which the decoder's crop needs.
    pub fn sample(&self, rng: &mut CounterRng, file: [usize; 2], params: &mut Vec<f64>) {
        for Step { augment, sides, by_decoder, .. } in &self.steps {
            augment.augmentation().sample(if *by_decoder { file } else { *sides }, rng, params);
        }
    }

    /// Whether there are only moves and erased rectangles, mixtures apart: samples can then be made in one pass
    /// over their bytes, by `pixel_map` and `erased`.
    pub fn is_one_pass(&self) -> bool {
        self.stages().all(|stage| matches!(stage, Stage::Moves(_) | Stage::Erases(_) | Stage::Mixes(_)))
    }

    pub fn moves_pixels(&self) -> bool {
        self.stages().any(|stage| matches!(stage, Stage::Moves(_)))
    }

    fn stages(&self) -> impl Iterator<Item = Stage<'_>> {
        self.steps.iter().filter(|step| !step.by_decoder).map(|step| step.augment.stage())
    }

    /// All moves of one sample, of pictures with these sides. `params` are all of the sample's.
    pub(crate) fn pixel_map(&self, sides: [usize; 2], params: &[f64]) -> PixelMap {
        let mut map = PixelMap::new(sides);
        for step in &self.steps {
            if let Stage::Moves(moves) = step.augment.stage() {
                moves.move_pixels(&mut map, &params[step.param_range.clone()]);
            }
        }
        map
    }

    /// The rectangles of one sample that are erased: first and last + 1 of the rows, then of the columns.
    pub fn erased(&self, params: &[f64]) -> impl Iterator<Item = [usize; 4]> {
        self.steps.iter().filter_map(|step| match step.augment.stage() {
            Stage::Erases(erases) => Some(erases.rectangle(&params[step.param_range.clone()])),
            _ => None,
        })
    }

    /// The changes to pixels by operations of libtorch, but the decoder's. `params` are those of
    /// [`sample`](Self::sample), sample after sample.
    pub fn pixels(&self, mut pixels: Pixels, params: &[f64]) -> Pixels {
        let mut steps = self.steps.iter().filter(|step| !step.by_decoder).peekable();
        while let Some(step) = steps.next() {
            match step.augment.stage() {
                Stage::Moves(moves) => {
                    let mut maps: Vec<_> =
                        (0..pixels.xs.size()[0]).map(|_| PixelMap::new(step.sides)).collect();
                    let mut add = |step: &Step, moves: &dyn MovesPixels| {
                        for (map, params) in maps.iter_mut().zip(self.rows(step, params)) {
                            moves.move_pixels(map, params);
                        }
                    };
                    add(step, moves);
                    // Moves that follow each other are made at once.
                    while let Some((next, Stage::Moves(moves))) =
                        steps.peek().map(|step| (*step, step.augment.stage()))
                    {
                        add(next, moves);
                        steps.next();
                    }
                    pixels.xs = move_pixels(&pixels.xs, &maps, self.target_fill);
                }
                Stage::Pixels(change) => {
                    let Pixels { kind, .. } = pixels;
                    let xs = pixels.into_unit();
                    pixels = Pixels { xs: change.apply(&xs, &self.params(step, params, &xs)), kind };
                }
                Stage::Erases(_) | Stage::Normalized(_) | Stage::Mixes(_) => {}
            }
        }
        pixels
    }

    /// The changes to normalised samples `[B, ...]`. `params` are those of [`sample`](Self::sample), sample
    /// after sample.
    pub fn normalized(&self, mut xs: Tensor, params: &[f64]) -> Tensor {
        for step in &self.steps {
            match step.augment.stage() {
                Stage::Erases(erases) => {
                    let rectangles: Vec<_> =
                        self.rows(step, params).map(|params| erases.rectangle(params)).collect();
                    xs = erase(&xs, &rectangles);
                }
                Stage::Normalized(change) => xs = change.apply(&xs, &self.params(step, params, &xs)),
                Stage::Moves(_) | Stage::Pixels(_) | Stage::Mixes(_) => {}
            }
        }
        xs
    }

    /// The parameters of `step` for each sample; `params` are those of all steps.
    fn rows<'a>(&'a self, step: &'a Step, params: &'a [f64]) -> impl Iterator<Item = &'a [f64]> {
        params.chunks_exact(self.num_params.max(1)).map(|row| &row[step.param_range.clone()])
    }

    /// The same, with a tensor on the device of `xs` `[B, ...]`.
    fn params(&self, step: &Step, params: &[f64], xs: &Tensor) -> Params {
        let values: Vec<f64> = self.rows(step, params).flatten().copied().collect();
        let tensor = Tensor::from_slice(&values).view([xs.size()[0], step.param_range.len() as i64]);
        Params { tensor: upload(&tensor, xs.device()), values }
    }

    /// One mixture, chosen by `rng` where there are several. `xs` `[B, ...]`, `ys` `[B, K]`, both floating
    /// point.
    pub fn mix(&self, xs: Tensor, ys: Tensor, rng: &mut CounterRng) -> (Tensor, Tensor) {
        let mixtures: Vec<_> = (self.stages())
            .filter_map(|stage| match stage {
                Stage::Mixes(mixture) => Some(mixture),
                _ => None,
            })
            .collect();
        let chosen = if mixtures.len() > 1 { rng.below(mixtures.len() as u64) as usize } else { 0 };
        match mixtures.get(chosen) {
            Some(mixture) => mixture.mix(&xs, &ys, rng),
            None => (xs, ys),
        }
    }

    /// Whether batches are mixed, so that targets become floating point `[B, K]`.
    pub fn mixes(&self) -> bool {
        self.stages().any(|stage| matches!(stage, Stage::Mixes(_)))
    }
}

/// Sets a rectangle of each sample of `xs` `[B, C, H, W]` to 0: first and last + 1 of the rows, then of the
/// columns.
fn erase(xs: &Tensor, rectangles: &[[usize; 4]]) -> Tensor {
    let size = xs.size();
    let edges: Vec<i64> = rectangles.iter().flatten().map(|&edge| edge as i64).collect();
    let edges = upload(&Tensor::from_slice(&edges).view([size[0], 4]), xs.device());
    let within = |first: i64, len: i64| {
        let at = Tensor::arange(len, (Kind::Int64, xs.device())).view([1, len]);
        at.ge_tensor(&edges.narrow(1, first, 1)).logical_and(&at.lt_tensor(&edges.narrow(1, first + 1, 1)))
    };
    let rows = within(0, size[2]).view([-1, 1, size[2], 1]);
    let columns = within(2, size[3]).view([-1, 1, 1, size[3]]);
    xs.masked_fill(&rows.logical_and(&columns), 0.0)
}
