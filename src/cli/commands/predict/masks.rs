//! What `predict` writes of a segmentation run: a mask for every picture, of its size.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use super::Options;
use crate::cli::commands::outputs::{TileOptions, bar, each, jobs, tile_progress};
use crate::data::mask::{Level, percent, tint, voc_colour};
use crate::data::pictures_in;
use crate::data::{ImageFile, Mode, Picture, SourceSpec};
use crate::inference::loaded_model::LoadedModel;
use crate::inference::segmenter::Segmenter;
use crate::libtorch::machine::keep_memory;
use crate::tasks::Task;
use crate::util::atomic_file;
use crate::util::console::print_err;
use crate::util::exit_code::{ExitCode, WithExitCode, fail};

#[derive(Args, Debug)]
#[command(next_help_heading = "Segmentation runs")]
pub struct MaskOptions {
    /// The folder for the masks; or a .png file, for one picture; or the .npy file of --embed
    #[arg(long, short, value_name = "OUT")]
    pub output: Option<std::path::PathBuf>,
    /// What the masks are written as
    #[arg(long, value_enum, default_value = "numbers")]
    pub masks: Form,
    #[command(flatten)]
    pub tiles: TileOptions,
    /// Replace files that are there already, the inputs excepted
    #[arg(long)]
    pub force: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// Grey PNG: the class numbers 0 to n - 1
    Numbers,
    /// PNG with the palette of Pascal VOC: the class numbers, in colours
    Palette,
    /// The levels or colours that `mask: {levels: …}` of the run's config declares
    Levels,
    /// The picture, every class but the first tinted with its colour of the palette
    Overlay,
}

/// Segments every picture.
pub fn run(options: &Options, trained: &LoadedModel, task: &dyn Task) -> Result<()> {
    let MaskOptions { output, masks, tiles, force } = &options.masks;
    let out = output.as_ref().with_exit_code(ExitCode::Usage, || {
        format!(
            "{} is a segmentation, whose answers are masks: say where they go, -o DIR",
            options.trained.run.display()
        )
    })?;
    let spec = &trained.config.spec;
    let levels = match (masks, &spec.data.train) {
        (Form::Levels, SourceSpec::Images(images)) => {
            let declared = images.mask.as_ref().map(|mask| mask.levels.clone()).unwrap_or_default();
            if declared.is_empty() {
                let message =
                    "--masks levels: the run's config declares no `mask: {levels: …}`; take numbers";
                return Err(fail(ExitCode::Usage, message));
            }
            declared
        }
        _ => Vec::new(),
    };
    let is_file =
        !out.is_dir() && out.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png"));
    let list = |path: &Path| pictures_in(path, spec.data.mode());
    let jobs = jobs(&options.inputs, out, is_file, *force, list, |path| path.with_extension("png"))?;
    let network = trained.network()?;
    keep_memory();
    let segmenter = Segmenter::new(&trained.plan.model, &network, task, spec)?;
    let side = tiles.side(|bytes| segmenter.tile(bytes));
    print_err!("{}", trained.weights.name());
    let names = trained.weights.classes().unwrap_or_default();
    let bar = bar(jobs.len());
    each(&jobs, &bar, "pictures could not be segmented", ExitCode::Data, |job| {
        let file = ImageFile { exif: spec.data.exif(), ..ImageFile::new(&job.input, segmenter.mode) };
        let picture = file.decode().with_exit_code(ExitCode::Data, || job.input.display())?;
        let classes = segmenter
            .segment(&picture, side, tile_progress(&bar, job))
            .with_context(|| job.input.display().to_string())?;
        // An overlay keeps the colours that the network does not see.
        let shown = match (masks, segmenter.mode) {
            (Form::Overlay, Mode::Grey | Mode::Float32(_)) => {
                let file = ImageFile { mode: Mode::Rgb, ..file };
                file.decode().with_exit_code(ExitCode::Data, || job.input.display())?
            }
            _ => picture,
        };
        let bytes = encode(&classes, &shown, *masks, &levels)?;
        atomic_file::write_with_folders(&job.output, &bytes)?;
        Ok(format!("{job} ({}x{}): {}", shown.width, shown.height, shares(&classes, names)))
    })
}

/// The share of each class that was found, as text.
fn shares(classes: &[u8], names: &[String]) -> String {
    let mut counts: BTreeMap<u8, usize> = BTreeMap::new();
    for run in classes.chunk_by(|a, b| a == b) {
        *counts.entry(run[0]).or_default() += run.len();
    }
    let share = |(class, count): (&u8, &usize)| {
        let name = names.get(usize::from(*class)).map_or_else(|| class.to_string().into(), Cow::from);
        format!("{name} {}", percent(*count as f64 / classes.len().max(1) as f64))
    };
    counts.iter().map(share).collect::<Vec<_>>().join(", ")
}

/// A PNG file of the classes of `picture`'s pixels.
fn encode(classes: &[u8], picture: &Picture, form: Form, levels: &[Level]) -> Result<Vec<u8>> {
    use png::{BitDepth, ColorType};
    let level = |class: &u8| levels.get(usize::from(*class)).copied().unwrap_or(Level::Number(0));
    let number = |class: &u8| match level(class) {
        Level::Number(number) => number,
        Level::Colour(_) => 0,
    };
    let is_wide = levels.iter().any(|level| matches!(level, Level::Number(256..)));
    let (color, depth, data): (_, _, Cow<[u8]>) = match (form, levels.first()) {
        (Form::Numbers, _) => (ColorType::Grayscale, BitDepth::Eight, classes.into()),
        (Form::Palette, _) => (ColorType::Indexed, BitDepth::Eight, classes.into()),
        (Form::Levels, Some(Level::Colour(_))) => {
            let colour = |class: &u8| match level(class) {
                Level::Colour(colour) => colour,
                Level::Number(_) => [0; 3],
            };
            (ColorType::Rgb, BitDepth::Eight, classes.iter().flat_map(colour).collect::<Vec<_>>().into())
        }
        (Form::Levels, _) if is_wide => {
            let bytes: Vec<u8> = classes.iter().flat_map(|class| number(class).to_be_bytes()).collect();
            (ColorType::Grayscale, BitDepth::Sixteen, bytes.into())
        }
        (Form::Levels, _) => {
            let bytes: Vec<u8> = classes.iter().map(|class| number(class) as u8).collect();
            (ColorType::Grayscale, BitDepth::Eight, bytes.into())
        }
        (Form::Overlay, _) => {
            let mut pixels = picture.data.clone();
            tint(&mut pixels, classes);
            (ColorType::Rgb, BitDepth::Eight, pixels.into())
        }
    };
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, picture.width as u32, picture.height as u32);
    encoder.set_color(color);
    encoder.set_depth(depth);
    if color == ColorType::Indexed {
        encoder.set_palette((0..=255).flat_map(voc_colour).collect::<Vec<_>>());
    }
    let mut writer = encoder.write_header().context("a mask as PNG")?;
    writer.write_image_data(&data).context("a mask as PNG")?;
    writer.finish().context("a mask as PNG")?;
    Ok(file)
}

/// Refuses the options of masks for runs that give none.
pub fn none(options: &MaskOptions, run: &Path) -> Result<()> {
    match &options.output {
        None => Ok(()),
        Some(_) => Err(fail(
            ExitCode::Usage,
            format!(
                "-o is for the masks of a segmentation, which {} is not, and for --embed; its answers are printed",
                run.display()
            ),
        )),
    }
}
