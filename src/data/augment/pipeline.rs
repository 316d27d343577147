//! The list of augmentations made ready for samples of one shape: who draws what, and how a batch passes.

use anyhow::Result;
use tch::{Kind, Tensor};

use super::{Augment, RandomResizedCrop, Stage, mix};
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

    /// A level 0 to 255 in the units of the values.
    fn level(&self, level: u8) -> f64 {
        if self.xs.kind() == Kind::Uint8 { f64::from(level) } else { f64::from(level) / 255.0 }
    }
}

/// The augmentations of one loader.
pub struct Pipeline {
    steps: Vec<Step>,
    output: Vec<i64>,
    width: usize,
    /// What constant padding shows in the last channel, where that is a target.
    target_fill: Option<u8>,
}

struct Step {
    augment: Augment,
    /// Height and width of what the step gets; [0, 0] for a table.
    sides: [usize; 2],
    /// Where its numbers stand among those of a sample.
    columns: std::ops::Range<usize>,
    /// A random resized crop that is made from the file, at its own resolution, before there is a sample.
    by_decoder: bool,
}

impl Pipeline {
    /// `input` is the shape of a sample: `[C, H, W]` or `[F]`. `files` says that samples are decoded on
    /// demand: a random resized crop is then left to the decoder. Exit 2 where a step does not suit the
    /// samples.
    pub fn new(augment: &[Augment], input: &[i64], files: bool) -> Result<Self> {
        let mut pipeline = Self { steps: Vec::new(), output: input.to_vec(), width: 0, target_fill: None };
        for augment in augment {
            let place = pipeline.steps.len();
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
        let sides = match *self.output.as_slice() {
            [_, height, width] => [height as usize, width as usize],
            _ if augment.works_on_tables() => [0, 0],
            _ => return Err("this step works on pictures only; remove it".into()),
        };
        let cut = match augment {
            Augment::Crop(step) => step.output(sides[0], sides[1])?,
            Augment::RandomResizedCrop(step) => step.size.map_or(sides, |size| size.sides()),
            Augment::Dihedral(_) if sides[0] != sides[1] => {
                return Err("quarter turns need squares; crop to one, or use `flip`".into());
            }
            Augment::ColorJitter(step) if step.needs_colour() && self.output[0] != 3 => {
                return Err("saturation and hue need 3 channels; leave them out".into());
            }
            _ => sides,
        };
        let by_decoder = files && augment.needs_original();
        if by_decoder && !self.steps.is_empty() {
            return Err("files are cropped while they are decoded; make this the first step".into());
        }
        if let [_, height, width] = self.output.as_mut_slice() {
            [*height, *width] = cut.map(|side| side as i64);
        }
        let columns = match augment {
            Augment::Flip(_) | Augment::Crop(_) => 2,
            Augment::Dihedral(_) => 3,
            Augment::Rotation(_) | Augment::Noise(_) => 1,
            Augment::RandomResizedCrop(_) | Augment::ColorJitter(_) | Augment::Cutout(_) => 4,
            Augment::Mixup(_) | Augment::Cutmix(_) => 0,
        };
        let columns = self.width..self.width + columns;
        self.width = columns.end;
        self.steps.push(Step { augment: augment.clone(), sides, columns, by_decoder });
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

    /// How many numbers [`draw`](Self::draw) appends.
    pub fn num_params(&self) -> usize {
        self.width
    }

    /// The shape of a sample as it comes from the source: after the decoder's own crop.
    pub fn decoded(&self, input: &[i64]) -> Vec<i64> {
        let mut shape = input.to_vec();
        if let (Some(crop), [_, height, width]) = (self.decoder_crop(), shape.as_mut_slice())
            && let Some(size) = crop.size
        {
            [*height, *width] = size.sides().map(|side| side as i64);
        }
        shape
    }

    /// The random resized crop that is the decoder's.
    pub fn decoder_crop(&self) -> Option<&RandomResizedCrop> {
        match self.steps.first() {
            Some(Step { augment: Augment::RandomResizedCrop(crop), by_decoder: true, .. }) => Some(crop),
            _ => None,
        }
    }

    /// The steps of `stage` that are not the decoder's, in order.
    pub fn stage(&self, stage: Stage) -> impl Iterator<Item = &Augment> {
        let steps = self.steps.iter().filter(move |step| !step.by_decoder && step.augment.stage() == stage);
        steps.map(|step| &step.augment)
    }

    /// Draws the numbers of one sample and appends them. `file` is the size of the picture in the file, which
    /// the decoder's crop needs.
    pub fn draw(&self, draw: &mut CounterRng, file: [usize; 2], numbers: &mut Vec<f64>) {
        for Step { augment, sides, by_decoder, .. } in &self.steps {
            match augment {
                Augment::Flip(step) => numbers.extend(step.draw(draw)),
                Augment::Crop(step) => numbers.extend(step.draw(*sides, draw)),
                Augment::Dihedral(step) => numbers.extend(step.draw(draw)),
                Augment::RandomResizedCrop(step) => {
                    numbers.extend(step.draw(if *by_decoder { file } else { *sides }, draw));
                }
                Augment::Rotation(step) => numbers.extend(step.draw(draw)),
                Augment::ColorJitter(step) => numbers.extend(step.draw(draw)),
                Augment::Noise(step) => numbers.extend(step.draw(draw)),
                Augment::Cutout(step) => numbers.extend(step.draw(*sides, draw)),
                Augment::Mixup(_) | Augment::Cutmix(_) => {}
            }
        }
    }

    /// The changes to pixels, but the decoder's. `params` `[B, num_params]` float64 on the device of the
    /// pictures.
    pub fn pixels(&self, mut pixels: Pixels, params: &Tensor) -> Pixels {
        for step in self.steps.iter().filter(|step| !step.by_decoder) {
            let params = step.params(params);
            match &step.augment {
                Augment::Flip(flip) => pixels.xs = flip.apply(&pixels.xs, &params),
                Augment::Dihedral(step) => pixels.xs = step.apply(&pixels.xs, &params),
                Augment::Crop(crop) => {
                    let target = self.target_fill.map(|fill| pixels.level(fill));
                    pixels.xs = crop.apply(&pixels.xs, &params, pixels.level(crop.fill), target);
                }
                Augment::RandomResizedCrop(crop) => pixels = pixels.change(|xs| crop.apply(xs, &params)),
                Augment::Rotation(rotation) => {
                    let fill = f64::from(rotation.fill) / 255.0;
                    pixels = pixels.change(|xs| rotation.apply(xs, &params, fill));
                }
                Augment::ColorJitter(jitter) => pixels = pixels.change(|xs| jitter.apply(xs, &params)),
                Augment::Noise(_) | Augment::Cutout(_) | Augment::Mixup(_) | Augment::Cutmix(_) => {}
            }
        }
        pixels
    }

    /// The changes to normalised samples `[B, ...]`. `numbers` are those of [`draw`](Self::draw), sample
    /// after sample.
    pub fn normalized(&self, mut xs: Tensor, params: &Tensor, numbers: &[f64]) -> Tensor {
        for step in &self.steps {
            match &step.augment {
                Augment::Cutout(cutout) => xs = cutout.apply(&xs, &step.params(params)),
                Augment::Noise(noise) => {
                    let seeds: Vec<f64> =
                        numbers.chunks_exact(self.width).map(|row| row[step.columns.start]).collect();
                    xs = noise.apply(&xs, &seeds);
                }
                _ => {}
            }
        }
        xs
    }

    /// One mixture, chosen by `draw` where there are several. `xs` `[B, ...]`, `ys` `[B, K]`, both floating
    /// point.
    pub fn mix(&self, xs: Tensor, ys: Tensor, draw: &mut CounterRng) -> (Tensor, Tensor) {
        let mixtures: Vec<_> = self.stage(Stage::Mixture).collect();
        let chosen = if mixtures.len() > 1 { draw.below(mixtures.len() as u64) as usize } else { 0 };
        match mixtures.get(chosen) {
            Some(Augment::Mixup(mixup)) => mixup.apply(&xs, &ys, draw),
            Some(Augment::Cutmix(cutmix)) => cutmix.apply(&xs, &ys, draw),
            _ => (xs, ys),
        }
    }

    /// Whether batches are mixed, so that targets become floating point `[B, K]`.
    pub fn mixes(&self) -> bool {
        self.stage(Stage::Mixture).next().is_some()
    }

    /// Each step with the numbers that `numbers`, those of one sample, hold for it.
    pub fn of_sample<'a>(&'a self, numbers: &'a [f64]) -> impl Iterator<Item = (&'a Augment, &'a [f64])> {
        self.steps.iter().map(move |step| (&step.augment, &numbers[step.columns.clone()]))
    }

    /// The numbers of some samples as `[B, num_params]` float64, on the CPU; `num_params` must not be 0.
    pub fn tensor(&self, numbers: &[f64]) -> Tensor {
        Tensor::from_slice(numbers).view([-1, self.width as i64])
    }
}

impl Step {
    fn params(&self, params: &Tensor) -> Tensor {
        params.narrow(1, self.columns.start as i64, self.columns.len() as i64)
    }
}

impl Pixels {
    /// A change that needs values in [0, 1].
    fn change(self, change: impl FnOnce(&Tensor) -> Tensor) -> Self {
        let kind = self.kind;
        Self { xs: change(&self.into_unit()), kind }
    }
}

/// Targets as rows of probabilities, so that they can be mixed: classes one-hot, values as they are.
pub fn soft(ys: &Tensor, classes: usize, kind: Kind) -> Tensor {
    if ys.kind() == Kind::Int64 { mix::one_hot(ys, classes, kind) } else { ys.shallow_clone() }
}
