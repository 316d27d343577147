//! `tikhonov gradcam`: where in a picture a layer finds what an answer depends on.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use image::ImageFormat;
use tch::Tensor;

use super::{TrainedOptions, outputs};
use crate::data::normalize::NormalizeSpec;
use crate::data::pictures;
use crate::inference::gradcam::{gradcam, overlay};
use crate::libtorch::kernels::KernelSpec;
use crate::libtorch::machine::keep_memory;
use crate::tasks::Panel;
use crate::train::sample_images::sheet;
use crate::train::session::loader;
use crate::util::atomic_file;
use crate::util::console::{print_err, print_out};
use crate::util::exit_code::{ExitCode, WithExitCode, fail};
use crate::util::yaml::nearest;

/// Show where a trained network finds what its answer depends on (Grad-CAM).
///
/// A sheet with a row for each picture: the picture as the network sees it, and under the map of the layer, red
/// where it speaks most for the class.
#[derive(Args, Debug)]
pub struct Options {
    #[command(flatten)]
    trained: TrainedOptions,
    /// Pictures and folders of pictures
    #[arg(required = true, value_name = "IMAGE")]
    inputs: Vec<PathBuf>,
    /// The sheet, a PNG file
    #[arg(short, long, value_name = "FILE", default_value = "gradcam.png")]
    output: PathBuf,
    /// The layer, by the prefix of its parameters or its name in the model; without it the last that gives an image
    #[arg(long, value_name = "NAME")]
    layer: Option<String>,
    /// The class, by its name or number; without it the one that is found
    #[arg(long, value_name = "NAME|N")]
    class: Option<String>,
    /// Also the maps as they are, float32 [N, h, w]
    #[arg(long, value_name = "FILE.npy")]
    npy: Option<PathBuf>,
    /// Replace files that are there already
    #[arg(long)]
    force: bool,
}

pub fn run(options: &Options) -> Result<()> {
    for file in [Some(&options.output), options.npy.as_ref()].into_iter().flatten() {
        outputs::may_write(file, options.inputs.iter().map(PathBuf::as_path), options.force)?;
    }
    let mut trained = options.trained.open()?;
    // Ours are for training and for answers, with nothing to differentiate in between.
    KernelSpec::Libtorch.apply();
    let layer = match &options.layer {
        Some(layer) => layer.clone(),
        None => {
            let last = trained.plan.model.last_image_layer();
            let last = last.with_exit_code(ExitCode::Usage, || "no layer of this network gives an image")?;
            print_err!("layer {last}");
            last
        }
    };
    let tap = trained.plan.model.listen(&layer)?;
    let classes = trained.weights.classes().unwrap_or_default().to_vec();
    let class = options.class.as_deref().map(|class| number_of(class, &classes)).transpose()?;
    let (spec, task) = (&trained.config.spec, trained.config.spec.task.build());
    let network = trained.network()?;
    let (mode, fit) = spec.data.picture_rules(trained.plan.model.input())?;
    let set = pictures(&options.inputs, mode, &fit, spec.data.exif())?;
    keep_memory();
    let normalize = match &spec.data.normalize {
        NormalizeSpec::Given(normalize) => Some(normalize),
        NormalizeSpec::Auto => {
            let message =
                "data.normalize: `auto` is of the training set, which is not read here; give the run folder";
            return Err(fail(ExitCode::Usage, message));
        }
        _ => None,
    };
    let (mut rows, mut maps) = (Vec::new(), Vec::new());
    for batch in loader(spec, network.device(), &set, false)?.epoch(0, 0) {
        let batch = batch?;
        let seen = normalize.map_or_else(|| batch.xs.shallow_clone(), |done| done.undo(&batch.xs));
        let xs = task.make_inference_input(batch.xs);
        for (at, &index) in batch.indices.iter().enumerate() {
            let one = |tensor: &Tensor| tensor.narrow(0, at as i64, 1);
            let cam = gradcam(&*task, &network, &one(&xs), tap, class)?;
            let name = set.names.get(index as usize).cloned().unwrap_or_default();
            let class = classes.get(cam.class).cloned().unwrap_or_else(|| cam.class.to_string());
            print_out!("{name}  {class}  {:.4}", cam.score);
            let seen = one(&seen).clamp(0.0, 1.0);
            let caption = format!("{class} {:.2} {layer}", cam.score);
            rows.push([Panel::new(name, &seen), Panel::new(caption, &overlay(&seen, &cam.map))]);
            maps.push(cam.map);
        }
    }
    let bytes = sheet(&rows)?.encode(ImageFormat::Png)?;
    atomic_file::write_with_folders(&options.output, &bytes)
        .with_exit_code(ExitCode::Storage, || format!("writing {}", options.output.display()))?;
    if let Some(file) = &options.npy {
        outputs::write_npy(&Tensor::stack(&maps, 0), file)?;
    }
    let left_out = set.left_out();
    for skipped in &left_out {
        print_err!("{skipped}");
    }
    match left_out.len() {
        0 => Ok(()),
        count => Err(fail(ExitCode::Data, format!("{count} pictures could not be read"))),
    }
}

/// The number of a class that is given by its name or number.
fn number_of(class: &str, classes: &[String]) -> Result<usize> {
    if let Some(number) = classes.iter().position(|name| name == class) {
        return Ok(number);
    }
    class.parse().ok().filter(|number| classes.is_empty() || *number < classes.len()).with_exit_code(
        ExitCode::Usage,
        || {
            let hint = match nearest(class, classes.iter().map(String::as_str)) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("the classes are {}", classes.join(", ")),
            };
            format!("there is no class `{class}`; {hint}")
        },
    )
}
