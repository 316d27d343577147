//! Whether a TorchScript file computes what the network does.

use anyhow::{Result, ensure};
use tch::{Kind, Tensor, no_grad};

use super::{Agreement, Options, Preprocess};
use crate::data::{EvalTransform, Interpolation, Resize};
use crate::libtorch::{catch_panics, script};
use crate::nn::model::{Model, Network, Op, Sides};
use crate::util::exit_code::{ExitCode, fail};

/// The largest difference that rounding explains, relative to the largest value, where nothing says how far
/// rounding goes in this network.
fn tolerance(kind: Kind, options: &Options) -> f64 {
    let folded = options.freeze || options.optimize;
    match kind {
        Kind::Double => EXACT,
        Kind::Half => 2e-2,
        Kind::BFloat16 => 1e-1,
        _ if folded => 1e-4,
        _ => 1e-5,
    }
}

/// What rounding may do in float64. The batch statistics of a deep network magnify it: those of ResNet-152
/// come out 4e-4 apart in float32 and 1e-12 in float64, where a difference of meaning would stay as large as
/// it is.
const EXACT: f64 = 1e-9;
/// How much farther than the network itself the file may be from the answers in float64.
const SPREAD: f64 = 10.0;

/// Input for the file, and the same as the network takes it, in `kind`.
fn samples(network: &Network, model: &Model, options: &Options) -> Result<(Tensor, Tensor)> {
    let shape = [&[3i64], model.input()].concat();
    let xs = Tensor::f_rand(shape.as_slice(), (Kind::Float, network.device()))?;
    Ok(match &options.preprocess {
        Some(Preprocess { normalize, resize, .. }) => {
            let fitted = match (resize, model.input()) {
                (Some(Resize::Shorter(transform)), &[_, height, width]) => {
                    shorter(&xs, transform, height, width)?
                }
                // It has the size already.
                _ => xs.shallow_clone(),
            };
            let normalized = normalize.as_ref().map_or_else(|| fitted.shallow_clone(), |n| n.apply(&fitted));
            (xs, normalized.to_kind(network.kind()))
        }
        None => {
            let xs = (xs * 4.0 - 2.0).to_kind(network.kind());
            (xs.shallow_clone(), xs)
        }
    })
}

/// Pictures of `height × width` as [`EvalTransform`] makes samples of that size of them.
fn shorter(xs: &Tensor, transform: &EvalTransform, height: i64, width: i64) -> Result<Tensor> {
    let side = transform.resize as i64;
    let size = [(height * side / width).max(side), (width * side / height).max(side)];
    let scaled = match transform.interpolation {
        Interpolation::Bilinear => xs.f_internal_upsample_bilinear2d_aa(size, false, None, None)?,
        Interpolation::Bicubic => {
            xs.f_internal_upsample_bicubic2d_aa(size, false, None, None)?.f_clamp(0.0, 1.0)?
        }
    };
    let start = |whole: i64, part: i64| ((whole - part) as f64 / 2.0).round_ties_even() as i64;
    let rows = scaled.f_narrow(2, start(size[0], height), height)?;
    Ok(rows.f_narrow(3, start(size[1], width), width)?)
}

/// Exit 4 where `apart` is more than `allowed`.
fn refuse(apart: f64, allowed: f64, mode: &str) -> Result<()> {
    let message = format!(
        "loaded again, the file answers otherwise than the network: {apart:.1e} apart in {mode}, {allowed:.0e} is rounding; \
         nothing was written"
    );
    match apart <= allowed {
        true => Ok(()),
        false => Err(fail(ExitCode::Checkpoint, message)),
    }
}

/// What the network answers, with what `options` put after it.
fn answer(network: &Network, xs: &Tensor, train: bool, options: &Options) -> Result<Tensor> {
    catch_panics(|| {
        let ys = no_grad(|| network.forward(xs, train));
        match &options.preprocess {
            _ if options.softmax => (ys / options.temperature.unwrap_or(1.0)).softmax(1, None::<Kind>),
            _ if options.sigmoid => (ys / options.temperature.unwrap_or(1.0)).sigmoid(),
            Some(Preprocess { normalize_target: Some(target), .. }) => {
                target.undo(&ys.to_kind(Kind::Double)).to_kind(ys.kind())
            }
            _ => ys,
        }
    })
}

/// Compares a program for evaluation that is a flat list of calls with the network, at the sizes of its input
/// and at others that `sides` allow; with preprocessing, pictures of other sizes with the program that
/// chooses. Returns the largest difference.
pub(in crate::pytorch::export) fn flat(
    file: &dyn Fn(&Tensor) -> Result<Tensor>,
    model: &Model,
    network: &Network,
    options: &Options,
    sides: Option<Sides>,
) -> Result<f64> {
    let mut sizes = vec![model.input().to_vec()];
    let resized = options.preprocess.as_ref().is_some_and(|preprocess| preprocess.resize.is_some());
    if let (Some(sides), &[channels, height, width], false) = (sides, model.input(), resized) {
        sizes.push(vec![channels, sides.other(0, height), sides.other(1, width)]);
    }
    let mut largest = 0.0f64;
    for size in &sizes {
        let shape = [&[3i64], size.as_slice()].concat();
        let mut xs = Tensor::f_rand(shape.as_slice(), (Kind::Float, network.device()))?;
        let prepared = match &options.preprocess {
            Some(Preprocess { normalize, .. }) => {
                xs = (xs * 255.0).round().to_kind(Kind::Uint8);
                let scaled = xs.to_kind(Kind::Float) / 255.0;
                let normalized =
                    normalize.as_ref().map_or_else(|| scaled.shallow_clone(), |n| n.apply(&scaled));
                normalized.to_kind(network.kind())
            }
            None => {
                xs = (xs * 4.0 - 2.0).to_kind(network.kind());
                xs.shallow_clone()
            }
        };
        let (ours, theirs) = (answer(network, &prepared, false, options)?, file(&xs)?);
        let apart = difference(&ours, &theirs)?;
        let allowed = tolerance(network.kind(), options);
        largest = largest.max(apart);
        if apart <= allowed || matches!(model.root().op, Op::Script(_)) {
            refuse(apart, allowed, "evaluation")?;
            continue;
        }
        let exact = model.build(network.device(), Kind::Double)?;
        exact.load_state(&network.state().into_iter().collect())?;
        let truth = answer(&exact, &prepared.to_kind(Kind::Double), false, options)?;
        let allowed = allowed.max(SPREAD * difference(&truth, &ours)?);
        refuse(difference(&truth, &theirs)?, allowed, "evaluation")?;
    }
    if let (true, &[channels, height, width]) = (resized, model.input()) {
        let chosen = super::program(model, network, &super::wrapping(model, options), &options.about)?;
        chosen.set_training(false)?;
        for [height, width] in
            [[height + 7, 2 * width + 1], [2 * height + 5, width], [height / 2 + 1, width + 3]]
        {
            let size = [2, channels, height, width];
            let xs = (Tensor::f_rand(size, (Kind::Float, network.device()))? * 255.0).to_kind(Kind::Uint8);
            let apart = difference(&no_grad(|| chosen.forward(&xs))?, &file(&xs)?)?;
            refuse(apart, tolerance(network.kind(), options), "pictures of another size")?;
            largest = largest.max(apart);
        }
    }
    Ok(largest)
}

/// Compares the file with the network: in the network's own kind in evaluation, as far as its rounding goes,
/// and both in float64, where rounding is no excuse. A frozen file has its weights as constants and cannot be
/// brought to float64.
pub(super) fn compare(
    written: &script::Module,
    model: &Model,
    network: &Network,
    options: &Options,
) -> Result<Agreement> {
    let is_frozen = options.freeze || options.optimize;
    if !is_frozen {
        written.set_training(false)?;
    }
    let (raw, prepared) = samples(network, model, options)?;
    let ours = answer(network, &prepared, false, options)?;
    let theirs = no_grad(|| written.forward(&raw))?;
    let eval = difference(&ours, &theirs)?;
    let is_script = matches!(model.root().op, Op::Script(_));
    if is_script {
        // The same program on both sides, of which there is no float64 form.
        refuse(eval, tolerance(network.kind(), options), "evaluation")?;
        return Ok(Agreement { eval, train: None });
    }
    let exact = model.build(network.device(), Kind::Double)?;
    exact.load_state(&network.state().into_iter().collect())?;
    let wide = |xs: &Tensor| xs.to_kind(Kind::Double);
    let truth = answer(&exact, &wide(&prepared), false, options)?;
    let allowed = tolerance(network.kind(), options).max(SPREAD * difference(&truth, &ours)?);
    refuse(difference(&truth, &theirs)?, allowed, "evaluation")?;
    if is_frozen {
        return Ok(Agreement { eval, train: None });
    }
    written.set_kind(Kind::Double)?;
    let raw = if options.preprocess.is_some() { raw } else { wide(&raw) };
    let apart = |train: bool, mode: &str| -> Result<f64> {
        written.set_training(train)?;
        let apart = difference(
            &answer(&exact, &wide(&prepared), train, options)?,
            &no_grad(|| written.forward(&raw))?,
        )?;
        refuse(apart, EXACT, mode).map(|()| apart)
    };
    apart(false, "evaluation, in float64")?;
    let is_random = model.root().leaves().iter().any(|leaf| match &leaf.op {
        Op::Layer(spec) => spec.layer().is_random(),
        _ => false,
    });
    let train = (!is_random).then(|| apart(true, "training, in float64")).transpose()?;
    Ok(Agreement { eval, train })
}

/// The largest difference, relative to the largest value.
fn difference(ours: &Tensor, theirs: &Tensor) -> Result<f64> {
    ensure!(
        ours.size() == theirs.size(),
        "its output is {:?}, the network's {:?}",
        theirs.size(),
        ours.size()
    );
    let (ours, theirs) = (ours.to_kind(Kind::Double), theirs.to_kind(Kind::Double));
    let largest = ours.f_nan_to_num(0.0, 0.0, 0.0)?.f_abs()?.f_max()?.double_value(&[]).max(1e-12);
    // Broken weights answer NaN here and there.
    let same =
        ours.f_eq_tensor(&theirs)?.f_logical_or(&ours.f_isnan()?.f_logical_and(&theirs.f_isnan()?)?)?;
    Ok((ours - theirs).f_abs()?.f_masked_fill(&same, 0.0)?.f_max()?.double_value(&[]) / largest)
}
