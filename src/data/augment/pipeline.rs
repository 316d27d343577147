//! The list of augmentations made ready for samples of one shape.

use std::ops::Range;

use anyhow::Result;
use tch::{Device, Kind, Tensor};

use super::noise::normals;
use super::pixel_map::{PixelMap, move_pixels};
use super::{Augment, ChangesValues, Levels, MovesPixels, OwnTarget, Stage};
use crate::libtorch::device::upload;
use crate::util::exit_code::{ExitCode, fail};
use crate::util::rng::{CounterRng, RngStream};

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

    /// 8-bit levels on the CPU, floating-point values rounded to them.
    fn levels(&self) -> Tensor {
        let levels = match self.xs.kind() {
            Kind::Uint8 => self.xs.shallow_clone(),
            _ => (&self.xs * 255.0).round().clamp(0.0, 255.0).to_kind(Kind::Uint8),
        };
        levels.to_device(Device::Cpu).contiguous()
    }
}

/// The augmentations of one loader.
pub struct Pipeline {
    steps: Vec<Step>,
    output: Vec<i64>,
    num_params: usize,
    /// What a sample carries of its own target, in its last channels.
    target: OwnTarget,
    /// How many of the first steps are made before samples are collected to a batch: by the decoder, and by
    /// [`levels`](Self::levels).
    early: usize,
}

/// A blanked rectangle of a normalised picture.
#[derive(Clone, Copy, Debug)]
pub struct Erased {
    /// First and last + 1 of the rows, then of the columns; empty where nothing is blanked.
    pub rectangle: [usize; 4],
    pub fill: Fill,
}

/// What a blanked rectangle shows.
#[derive(Clone, Copy, Debug)]
pub enum Fill {
    Value(f64),
    /// Standard normal noise of this seed.
    Normal(u64),
}

impl Erased {
    /// The same rectangle of each of `channels` planes, value by value, plane by plane; None where they all are
    /// the one value.
    pub fn noise(&self, channels: usize) -> Option<Vec<f32>> {
        let Fill::Normal(seed) = self.fill else { return None };
        let [top, bottom, left, right] = self.rectangle;
        let mut rng = CounterRng::new(seed, 0, 0, RngStream::Augment);
        let count = channels * bottom.saturating_sub(top) * right.saturating_sub(left);
        let pairs = std::iter::repeat_with(|| normals(rng.bits())).take(count.div_ceil(2));
        let mut noise: Vec<f32> = pairs.flatten().collect();
        noise.truncate(count);
        Some(noise)
    }
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
    /// `input` is the shape of a sample: `[C, H, W]` or `[F]`. `files` says that samples are whole files, decoded
    /// on demand: a random resized crop is then left to the decoder. Exit 2 where a step does not suit the
    /// samples.
    pub fn new(augment: &[Augment], input: &[i64], files: bool) -> Result<Self> {
        Self::with_targets(augment, input, files, OwnTarget::None)
    }

    /// The same, for samples that carry `target` in their last channels, which `input` counts.
    pub fn with_targets(augment: &[Augment], input: &[i64], files: bool, target: OwnTarget) -> Result<Self> {
        // The decoder would blend the classes of a mask.
        let files = files && target == OwnTarget::None;
        let mut pipeline =
            Self { steps: Vec::new(), output: input.to_vec(), num_params: 0, target, early: 0 };
        for (place, augment) in augment.iter().enumerate() {
            pipeline.push(augment, files).map_err(|reason| {
                let name = augment.name();
                fail(
                    ExitCode::Usage,
                    format!("augment.{place}.{name}: samples are {:?}: {reason}", pipeline.image()),
                )
            })?;
        }
        pipeline.early = usize::from(pipeline.crops_files());
        Ok(pipeline)
    }

    /// Leaves to [`levels`](Self::levels) what can be done there: the steps up to the last that computes levels,
    /// where those before it do the same or move pixels.
    pub fn with_levels(mut self) -> Self {
        let is_early = |step: &&Step| matches!(step.augment.stage(), Stage::Levels(_) | Stage::Moves(_));
        let able = self.early + self.steps[self.early..].iter().take_while(is_early).count();
        let last = self.steps[self.early..able].iter().rposition(|step| step.augment.takes_levels());
        self.early += last.map_or(0, |last| last + 1);
        self
    }

    fn push(&mut self, augment: &Augment, files: bool) -> Result<(), String> {
        let step = augment.augmentation();
        let mut output = step.output_shape(&self.image())?;
        if let [channels, _, _] = output.as_mut_slice() {
            *channels += self.target.channels() as i64;
        }
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

    /// The shape of a sample after the steps so far, without its target.
    fn image(&self) -> Vec<i64> {
        match *self.output {
            [channels, height, width] => vec![channels - self.target.channels() as i64, height, width],
            _ => self.output.clone(),
        }
    }

    /// What constant padding shows in the last channel, where that is a mask.
    pub fn target_fill(&self) -> Option<u8> {
        self.target.mask_fill()
    }

    /// Channels of a sample that are its target.
    pub fn target_channels(&self) -> usize {
        self.target.channels()
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

    /// Whether [`levels`](Self::levels) has something to do.
    pub fn has_levels(&self) -> bool {
        self.early > usize::from(self.crops_files())
    }

    /// The shape of a sample after [`levels`](Self::levels), `decoded` before.
    pub fn collected(&self, decoded: &[i64]) -> Vec<i64> {
        self.steps[..self.early].last().map_or_else(|| decoded.to_vec(), |step| step.output.clone())
    }

    /// The steps that [`with_levels`](Self::with_levels) has left to this, on one sample, whose planes are
    /// `data`. `params` are all of the sample's.
    pub fn levels(&self, data: Vec<u8>, params: &[f64]) -> Vec<u8> {
        let Some(first) = self.steps.get(usize::from(self.crops_files())) else { return data };
        let [height, width] = first.sides;
        let mut levels = Levels { data, height, width, target: self.target };
        for step in &self.steps[usize::from(self.crops_files())..self.early] {
            let params = &params[step.param_range.clone()];
            match step.augment.stage() {
                Stage::Moves(moves) => {
                    let mut map = PixelMap::new(step.sides);
                    moves.move_pixels(&mut map, params);
                    map.move_levels(&mut levels);
                }
                Stage::Levels(change) => change.apply(&mut levels, params),
                _ => {}
            }
        }
        levels.data
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
        self.late().iter().map(|step| step.augment.stage())
    }

    /// The steps that are made on batches.
    fn late(&self) -> &[Step] {
        &self.steps[self.early..]
    }

    /// All moves of one sample, of pictures with these sides. `params` are all of the sample's.
    pub(crate) fn pixel_map(&self, sides: [usize; 2], params: &[f64]) -> PixelMap {
        let mut map = PixelMap::new(sides);
        for step in self.late() {
            if let Stage::Moves(moves) = step.augment.stage() {
                moves.move_pixels(&mut map, &params[step.param_range.clone()]);
            }
        }
        map
    }

    /// The rectangles of one sample that are erased.
    pub fn erased(&self, params: &[f64]) -> impl Iterator<Item = Erased> {
        self.steps.iter().filter_map(|step| match step.augment.stage() {
            Stage::Erases(erases) => Some(erases.erased(&params[step.param_range.clone()])),
            _ => None,
        })
    }

    /// The changes to pixels of a batch, those left that no thread of the loader and no decoder has made. `params` are those of
    /// [`sample`](Self::sample), sample after sample.
    pub fn pixels(&self, mut pixels: Pixels, params: &[f64]) -> Pixels {
        let mut steps = self.late().iter().peekable();
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
                    pixels.xs = move_pixels(&pixels.xs, &maps, self.target_fill());
                }
                Stage::Pixels(change) => {
                    let Pixels { kind, .. } = pixels;
                    let xs = pixels.into_unit();
                    let params = self.params(step, params, &xs);
                    pixels = Pixels { xs: self.change(change, step, &xs, &params), kind };
                }
                Stage::Levels(change) => {
                    let device = pixels.xs.device();
                    let (levels, [height, width]) = (pixels.levels(), step.sides);
                    let per_sample = levels.numel() / (levels.size()[0] as usize).max(1);
                    let mut bytes = vec![0u8; levels.numel()];
                    levels.copy_data(&mut bytes, levels.numel());
                    let samples = bytes.chunks_exact_mut(per_sample.max(1));
                    for (sample, params) in samples.zip(self.rows(step, params)) {
                        let data = sample.to_vec();
                        let mut levels = Levels { data, height, width, target: self.target };
                        change.apply(&mut levels, params);
                        sample.copy_from_slice(&levels.data);
                    }
                    let levels = Tensor::from_slice(&bytes).view(levels.size().as_slice());
                    pixels.xs = upload(&levels, device);
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
                    let erased: Vec<_> =
                        self.rows(step, params).map(|params| erases.erased(params)).collect();
                    xs = erase(&xs, &erased, self.target.channels() as i64);
                }
                Stage::Normalized(change) => {
                    let params = self.params(step, params, &xs);
                    xs = self.change(change, step, &xs, &params);
                }
                Stage::Moves(_) | Stage::Levels(_) | Stage::Pixels(_) | Stage::Mixes(_) => {}
            }
        }
        xs
    }

    /// What `step` makes of samples with their targets: an image is moved as its target is, and a mask by its
    /// own rule.
    fn change(&self, change: &dyn ChangesValues, step: &Step, xs: &Tensor, params: &Params) -> Tensor {
        let own = self.target.channels() as i64;
        if own == 0 || (self.target != OwnTarget::Mask && step.augment.is_geometric()) {
            return change.apply(xs, params);
        }
        let image = xs.size()[1] - own;
        let target = xs.narrow(1, image, own);
        let target =
            if self.target == OwnTarget::Mask { change.apply_to_masks(&target, params) } else { target };
        Tensor::cat(&[change.apply(&xs.narrow(1, 0, image), params), target], 1)
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

    /// One mixture, chosen by `rng` where there are several that are on in `epoch`, of which the first is 0.
    /// `xs` `[B, ...]`, `ys` `[B, K]`, both floating point.
    pub fn mix(&self, xs: Tensor, ys: Tensor, epoch: u64, rng: &mut CounterRng) -> (Tensor, Tensor) {
        let mixtures: Vec<_> = (self.stages())
            .filter_map(|stage| match stage {
                Stage::Mixes(mixture) => Some(mixture),
                _ => None,
            })
            .filter(|mixture| mixture.when().off_epoch.is_none_or(|off| epoch + 1 < off))
            .collect();
        let chosen = if mixtures.len() > 1 { rng.below(mixtures.len() as u64) as usize } else { 0 };
        match mixtures.get(chosen) {
            Some(mixture) if mixture.when().p >= 1.0 || rng.uniform() < mixture.when().p => {
                mixture.mix(&xs, &ys, rng)
            }
            _ => (xs, ys),
        }
    }

    /// Whether batches are mixed, so that targets become floating point `[B, K]`.
    pub fn mixes(&self) -> bool {
        self.stages().any(|stage| matches!(stage, Stage::Mixes(_)))
    }
}

/// Blanks a rectangle of each sample of `xs` `[B, C, H, W]` but for its last `target` channels.
fn erase(xs: &Tensor, erased: &[Erased], target: i64) -> Tensor {
    if target > 0 {
        let image = xs.size()[1] - target;
        let blanked = erase(&xs.narrow(1, 0, image), erased, 0);
        return Tensor::cat(&[blanked, xs.narrow(1, image, target)], 1);
    }
    let size = xs.size();
    let edges: Vec<i64> = erased.iter().flat_map(|erased| erased.rectangle).map(|edge| edge as i64).collect();
    let edges = upload(&Tensor::from_slice(&edges).view([size[0], 4]), xs.device());
    let within = |first: i64, len: i64| {
        let at = Tensor::arange(len, (Kind::Int64, xs.device())).view([1, len]);
        at.ge_tensor(&edges.narrow(1, first, 1)).logical_and(&at.lt_tensor(&edges.narrow(1, first + 1, 1)))
    };
    let rows = within(0, size[2]).view([-1, 1, size[2], 1]);
    let columns = within(2, size[3]).view([-1, 1, 1, size[3]]);
    // One step has one kind of fill.
    let value = match erased.first().map(|erased| erased.fill) {
        Some(Fill::Value(value)) => value,
        _ => 0.0,
    };
    let out = xs.masked_fill(&rows.logical_and(&columns), value);
    for (sample, erased) in erased.iter().enumerate() {
        let [top, bottom, left, right] = erased.rectangle.map(|edge| edge as i64);
        if let Some(noise) = erased.noise(size[1] as usize).filter(|noise| !noise.is_empty()) {
            let noise = Tensor::from_slice(&noise).view([size[1], bottom - top, right - left]);
            let rows = out.get(sample as i64).narrow(1, top, bottom - top);
            rows.narrow(2, left, right - left).copy_(&upload(&noise, xs.device()));
        }
    }
    out
}
