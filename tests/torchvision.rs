//! Augmentations of 8-bit levels against torchvision v2 at fixed parameters, on the loader's threads and off them.

use std::fs;

use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};
use tikhonov::data::augment::{Pipeline, Pixels};
use tikhonov::data::loader::{Loader, LoaderOptions, Preparation};
use tikhonov::data::{Dataset, Targets};
use tikhonov::util::rng::{CounterRng, RngStream};

use crate::common::{has_modules, python};
use crate::loader::{augment as steps, batches, dataset, options, pictures};

/// A picture with edges, slopes and a little noise, `[1, C, H, W]` of levels.
fn scene(channels: i64, height: i64, width: i64) -> Tensor {
    let mut draw = CounterRng::new(3, 0, 0, RngStream::Generate);
    let mut levels = Vec::new();
    for channel in 0..channels {
        for y in 0..height {
            for x in 0..width {
                let slope = 40 + 120 * x / width + 20 * channel;
                let edge = if (x / 9 + y / 7) % 2 == 0 { 50 } else { 0 };
                levels.push((slope + edge + draw.below(16) as i64).min(255) as u8);
            }
        }
    }
    Tensor::from_slice(&levels).view([1, channels, height, width])
}

/// What one step makes of `levels` `[1, C, H, W]` with these parameters, as levels.
fn ours(step: &str, levels: &Tensor, params: &[f64]) -> Vec<u8> {
    let shape = &levels.size()[1..];
    let pipeline = Pipeline::new(&steps(&format!("[{step}]")), shape, false).unwrap();
    assert_eq!(pipeline.num_params(), params.len(), "{step}");
    let pixels = pipeline.pixels(Pixels::new(levels.shallow_clone(), Kind::Double), params);
    let levels = (pixels.into_unit() * 255.0).round().to_kind(Kind::Uint8).view(-1);
    Vec::try_from(levels).unwrap()
}

/// The same by `expression` of torchvision, with `x` the uint8 image and `F`, `R`, `M` as below.
fn theirs(cases: &[(String, String, Vec<f64>)], levels: &Tensor) -> Vec<Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("in.json"), folder.path().join("out.json"));
    let bytes: Vec<u8> = Vec::try_from(levels.contiguous().view(-1)).unwrap();
    let expressions: Vec<_> = cases.iter().map(|(_, expression, _)| expression).collect();
    let given = json!({"x": bytes, "shape": levels.size()[1..], "cases": expressions});
    fs::write(&input, given.to_string()).unwrap();
    python(&format!(
        "import json, torch, math\n\
         from torchvision.transforms import v2, InterpolationMode as M\n\
         from torchvision.transforms.functional import _get_perspective_coeffs as P\n\
         F = v2.functional\n\
         g = json.load(open({input:?}))\n\
         x = torch.tensor(g['x'], dtype=torch.uint8).view(g['shape'])\n\
         h, w = x.shape[-2:]\n\
         R = lambda name, m, i=M.NEAREST, fill=0: v2.RandAugment()._apply_image_or_video_transform(\n\
             x, name, m, i, {{torch.Tensor: fill}})\n\
         json.dump([eval(case).reshape(-1).tolist() for case in g['cases']], open({output:?}, 'w'))"
    ));
    serde_json::from_str(&fs::read_to_string(output).unwrap()).unwrap()
}

const OPERATIONS: [&str; 14] = [
    "Identity",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
];

fn cases(height: i64, width: i64, channels: i64) -> Vec<(String, String, Vec<f64>)> {
    let mut cases = Vec::new();
    let mut add = |step: &str, expression: &str, params: &[f64]| {
        cases.push((step.to_owned(), expression.to_owned(), params.to_vec()));
    };
    for (angle, shift, scale, shear) in [
        (0.0, [0, 0], 1.0, [0.0, 0.0]),
        (33.3, [4, -3], 0.83, [7.5, -4.25]),
        (-90.0, [0, 2], 1.7, [-11.0, 0.0]),
    ] {
        let given = [1.0, angle, shift[0] as f64, shift[1] as f64, scale, shear[0], shear[1]];
        for (way, fill) in [("nearest", 0), ("bilinear", 77)] {
            let mode = way.to_uppercase();
            add(
                &format!("{{affine: {{degrees: 90, interpolation: {way}, fill: {fill}}}}}"),
                &format!("F.affine(x, {angle}, {shift:?}, {scale}, {shear:?}, M.{mode}, {fill})"),
                &given,
            );
        }
    }
    let (right, bottom) = (width - 1, height - 1);
    let corners = [[3, 2], [right - 5, 1], [right - 1, bottom - 4], [2, bottom - 6]];
    let flat: Vec<f64> = corners.as_flattened().iter().map(|&at| at as f64).collect();
    for (way, fill) in [("nearest", 9), ("bilinear", 0)] {
        let mode = way.to_uppercase();
        add(
            &format!("{{perspective: {{interpolation: {way}, fill: {fill}}}}}"),
            &format!(
                "F.perspective(x, [[0, 0], [w - 1, 0], [w - 1, h - 1], [0, h - 1]], {corners:?}, M.{mode}, {fill})"
            ),
            &[&[1.0], flat.as_slice()].concat(),
        );
    }
    for (size, sigma) in [("3", 0.5), ("[7, 5]", 1.9)] {
        add(
            &format!("{{gaussian_blur: {{kernel_size: {size}}}}}"),
            &format!("F.gaussian_blur(x, {size}, [{sigma}, {sigma}])"),
            &[1.0, sigma],
        );
    }
    for factor in [0.0, 0.4, 1.0, 2.5] {
        add(
            &format!("{{adjust_sharpness: {{sharpness_factor: {factor}}}}}"),
            &format!("F.adjust_sharpness(x, {factor})"),
            &[1.0],
        );
    }
    add("{autocontrast: {}}", "F.autocontrast(x)", &[1.0]);
    add("{equalize: {}}", "F.equalize(x)", &[1.0]);
    add("{invert: {}}", "F.invert(x)", &[1.0]);
    add("{invert: {}}", "x", &[0.0]);
    add("{solarize: {threshold: 128}}", "F.solarize(x, 128)", &[1.0]);
    add("{posterize: {bits: 3}}", "F.posterize(x, 3)", &[1.0]);
    for quality in [1, 10, 49, 50, 75, 95, 100] {
        add("{jpeg: {quality: [1, 100]}}", &format!("F.jpeg(x, {quality})"), &[1.0, f64::from(quality)]);
    }
    if channels == 3 {
        add("{grayscale: {}}", "F.rgb_to_grayscale(x, 3)", &[1.0]);
    }
    for (number, name) in OPERATIONS.iter().enumerate() {
        let magnitudes: &[f64] = match *name {
            "Posterize" => &[8.0, 7.0, 2.0],
            "Solarize" => &[1.0, 0.3],
            "TranslateX" | "TranslateY" => &[13.593, -5.2],
            "Rotate" => &[9.0, -27.0, 135.0, 0.0],
            _ => &[0.27, -0.63],
        };
        for &magnitude in magnitudes {
            add(
                "{trivial_augment_wide: {fill: 0}}",
                &format!("R({name:?}, {magnitude})"),
                &[1.0, number as f64, magnitude],
            );
        }
    }
    add(
        "{rand_augment: {num_ops: 1, interpolation: bilinear, fill: 5}}",
        "R('ShearX', -0.2, M.BILINEAR, 5)",
        &[1.0, 1.0, -0.2],
    );
    cases
}

#[test]
fn augmentations_of_levels_are_torchvisions_within_one_level() {
    for [channels, height, width] in [[3, 61, 47], [1, 33, 50], [3, 64, 96]] {
        let levels = scene(channels, height, width);
        let cases = cases(height, width, channels);
        let wanted = theirs(&cases, &levels);
        for ((step, expression, params), wanted) in cases.iter().zip(&wanted) {
            let got = ours(step, &levels, params);
            assert_eq!(got.len(), wanted.len(), "{expression}");
            let far = got.iter().zip(wanted).filter(|(a, b)| a.abs_diff(**b) > 1).count();
            let near = got.iter().zip(wanted).filter(|(a, b)| a != b).count();
            let what =
                format!("{expression} of {channels}x{height}x{width}: {far} levels off, {near} by one");
            // The quotient of autocontrast is rounded down, the kernels of blurs are summed in another order.
            assert!(far == 0 && near * 20 <= got.len(), "{what}");
            if expression.contains("jpeg") || expression.contains("NEAREST") {
                assert_eq!(near, 0, "{what}");
            }
        }
    }
}

#[test]
fn the_magnitudes_that_are_drawn_are_torchvisions() {
    let script = "
import json
from torchvision.transforms import v2
out = {}
for name, one, bins in (('rand', v2.RandAugment, 31), ('trivial', v2.TrivialAugmentWide, 31), ('few', v2.RandAugment, 11)):
    out[name] = {}
    for op, (space, signed) in one._AUGMENTATION_SPACE.items():
        m = space(bins, 61, 47)
        out[name][op] = [signed, None if m is None else [float(v) for v in m]]
print(json.dumps(out))";
    let spaces: Value = serde_json::from_str(&python(script)).unwrap();
    let yamls = [
        ("rand", "{rand_augment: {}}", Some(9)),
        ("few", "{rand_augment: {num_ops: 3, magnitude: 10, num_magnitude_bins: 11}}", Some(10)),
        ("trivial", "{trivial_augment_wide: {}}", None),
    ];
    for (space, yaml, bin) in yamls {
        let pipeline = Pipeline::new(&steps(&format!("[{yaml}]")), &[3, 61, 47], false).unwrap();
        let mut seen = [[0; 14]; 2];
        let mut strengths = std::collections::BTreeSet::new();
        for index in 0..4000 {
            let mut params = Vec::new();
            pipeline.sample(&mut CounterRng::new(1, 0, index, RngStream::Augment), [0, 0], &mut params);
            assert_eq!(params[0], 1.0);
            for drawn in params[1..].chunks(2) {
                let (number, magnitude) = (drawn[0] as usize, drawn[1]);
                let known = &spaces[space][OPERATIONS[number]];
                seen[usize::from(magnitude < 0.0)][number] += 1;
                let Some(all) = known[1].as_array() else {
                    assert_eq!(magnitude, 0.0);
                    continue;
                };
                assert!(magnitude >= 0.0 || known[0] == true, "{yaml} {number}");
                let all: Vec<f64> = all.iter().map(|value| value.as_f64().unwrap()).collect();
                let near = |want: f64| (want - magnitude.abs()).abs() < 1e-5;
                assert!(
                    bin.map_or_else(|| all.iter().copied().any(near), |bin| near(all[bin])),
                    "{magnitude} {all:?}"
                );
                strengths.insert((number, (magnitude * 1e4) as i64));
            }
        }
        let each = seen[0].iter().zip(seen[1]).map(|(a, b)| a + b);
        assert!(each.clone().min() > Some(200), "{yaml}: {:?}", each.collect::<Vec<_>>());
        assert!(seen[1][1..10].iter().all(|&count| count > 80), "both directions: {seen:?}");
        assert_eq!(strengths.len() > 300, bin.is_none(), "{yaml}: {}", strengths.len());
    }
}

/// Everything that computes levels, between moves, floating-point steps and noise.
const LEVELS: &str = "[{flip: {horizontal: true}}, {rand_augment: {}}, {crop: {padding: 2, fill: 9}}, \
    {affine: {degrees: 20, translate: [0.1, 0.2], scale: [0.7, 1.3], shear: [-5, 5, -3, 3], fill: 99, p: 0.8}}, \
    {perspective: {}}, {gaussian_blur: {kernel_size: 3, p: 0.5}}, {jpeg: {quality: [30, 90], p: 0.5}}, \
    {grayscale: {}}, {solarize: {threshold: 100}}, {flip: {vertical: true}}, {rotation: {degrees: 10, p: 0.5}}, \
    {equalize: {}}, {random_erasing: {value: random}}, {cutout: {size: 3}}]";

fn loader(set: &Dataset, yaml: &str, workers: usize, seed: u64) -> Loader {
    let prep = Preparation { augment: steps(yaml), ..Preparation::default() };
    Loader::new(set, &prep, LoaderOptions { workers, seed, ..options() }).unwrap()
}

#[test]
fn levels_are_the_same_on_any_number_of_threads_wherever_an_epoch_starts() {
    let set = pictures(43, 3, 24, 20);
    let whole = batches(&loader(&set, LEVELS, 0, 7), 5, 0);
    for workers in [1, 3] {
        for from in [0, 3, 5] {
            let again = batches(&loader(&set, LEVELS, workers, 7), 5, from);
            assert_eq!(again.len(), whole.len() - from);
            for (a, b) in whole[from..].iter().zip(&again) {
                assert!(a.indices == b.indices && a.xs.equal(&b.xs), "{workers} threads from {from}");
            }
        }
    }
    for other in [batches(&loader(&set, LEVELS, 0, 7), 6, 0), batches(&loader(&set, LEVELS, 0, 8), 5, 0)] {
        assert!(!other[0].xs.equal(&whole[0].xs), "epochs and seeds differ");
    }
}

#[test]
fn steps_on_threads_and_on_batches_make_the_same_levels() {
    // Behind a step in floating point levels are computed batch by batch; one that turns by 0 degrees is no change.
    let set = pictures(16, 3, 24, 20);
    let tail = "{affine: {degrees: 30}}, {crop: {padding: 3, size: 20}}, {trivial_augment_wide: {}}";
    let threads = batches(&loader(&set, &format!("[{tail}]"), 2, 7), 0, 0);
    let pipeline = Pipeline::new(&steps(&format!("[{tail}]")), &[3, 24, 20], false).unwrap();
    for batch in &threads {
        let mut params = Vec::new();
        for &index in &batch.indices {
            pipeline.sample(
                &mut CounterRng::new(7, 0, index as u64, RngStream::Augment),
                [0, 0],
                &mut params,
            );
        }
        let tikhonov::data::Samples::Resident(xs) = &set.samples else { unreachable!() };
        let xs = xs.index_select(0, &Tensor::from_slice(&batch.indices));
        let whole = pipeline.pixels(Pixels::new(xs, Kind::Float), &params).into_unit();
        assert!(whole.equal(&batch.xs));
    }
}

#[test]
fn an_erased_rectangle_has_torchvisions_sizes_and_what_it_is_filled_with() {
    let n = 400;
    let set = dataset(Tensor::full([n, 1, 30, 20], 128, (Kind::Uint8, Device::Cpu)), Targets::Unknown);
    for (value, yaml) in [
        (Some(2.5), "value: 2.5"),
        (Some(0.0), "scale: [0.1, 0.1], ratio: [0.5, 2]"),
        (None, "value: random"),
    ] {
        let loader = loader(&set, &format!("[{{random_erasing: {{p: 0.6, {yaml}}}}}]"), 0, 7);
        let (mut count, mut noise) = (0, Vec::new());
        for batch in batches(&loader, 0, 0) {
            for sample in 0..batch.xs.size()[0] {
                let xs = batch.xs.get(sample).get(0);
                let blank = (&xs - 128.0 / 255.0).abs().gt(1e-6);
                let rows = blank.any_dim(1, false).sum(Kind::Int64).int64_value(&[]);
                let columns = blank.any_dim(0, false).sum(Kind::Int64).int64_value(&[]);
                assert_eq!(blank.sum(Kind::Int64).int64_value(&[]), rows * columns, "a rectangle");
                count += i32::from(rows > 0);
                assert!(rows < 30 && columns < 20);
                let inside: Vec<f64> = Vec::try_from(xs.masked_select(&blank).to_kind(Kind::Double)).unwrap();
                match value {
                    Some(value) => assert!(inside.iter().all(|&at| at == value)),
                    None => noise.extend(inside),
                }
                if yaml.contains("scale") && rows > 0 {
                    assert!((40..=80).contains(&(rows * columns)), "a tenth of 600: {rows}x{columns}");
                }
            }
        }
        assert!((200..=280).contains(&count), "about 240 of 400: {count}");
        if value.is_none() {
            let mean = noise.iter().sum::<f64>() / noise.len() as f64;
            let square = noise.iter().map(|at| at * at).sum::<f64>() / noise.len() as f64;
            assert!(mean.abs() < 0.02 && (square - 1.0).abs() < 0.03, "{mean} {square}");
        }
    }
}

#[test]
fn mixing_ends_at_its_epoch_and_happens_as_often_as_p_says() {
    let set = pictures(400, 1, 6, 6);
    let plain = loader(&set, "[]", 0, 7);
    let of = |yaml: &str, epoch| {
        let mixed = batches(&loader(&set, yaml, 0, 7), epoch, 0);
        let plain = batches(&plain, epoch, 0);
        mixed.iter().zip(&plain).filter(|(a, b)| !a.xs.equal(&b.xs)).count()
    };
    let both = "[{mixup: {alpha: 1, off_epoch: 3}}, {cutmix: {alpha: 1, off_epoch: 5, p: 0.5}}]";
    assert!(of(both, 1) > 30, "of 50 batches about 37");
    assert!((15..=35).contains(&of(both, 2)), "cutmix alone");
    assert_eq!(of(both, 4), 0);
    let ys = &batches(&loader(&set, both, 0, 7), 4, 0)[0].ys;
    assert!(ys.size() == [8, 3] && ys.eq(1.0).sum(Kind::Int64).int64_value(&[]) == 8, "still probabilities");
    assert!((15..=35).contains(&of("[{mixup: {alpha: 1, p: 0.5}}]", 7)));
}

#[test]
fn repeated_augmentation_draws_as_timms_sampler_and_augments_each_time_otherwise() {
    let set = pictures(43, 3, 24, 20);
    let prep = |repeats| Preparation { augment: steps(LEVELS), repeats, ..Preparation::default() };
    let once = Loader::new(&set, &prep(1), options()).unwrap();
    let thrice = Loader::new(&set, &prep(3), options()).unwrap();
    let indices = |loader: &Loader| -> Vec<i64> {
        batches(loader, 2, 0).iter().flat_map(|batch| batch.indices.clone()).collect()
    };
    let order: Vec<String> = indices(&once).iter().map(ToString::to_string).collect();
    // timm rounds an epoch down to a multiple of 256 samples, here it stays as long as the set.
    let script = format!(
        "import torch\nfrom timm.data.distributed_sampler import RepeatAugSampler\norder = torch.tensor([{}])\n\
         torch.randperm = lambda n, generator=None: order\n\
         sampler = RepeatAugSampler(range(43), num_replicas=1, rank=0, num_repeats=3, selected_round=1)\n\
         print(*list(sampler))",
        order.join(", ")
    );
    if has_modules("repeated_augmentation_draws_as_timms_sampler", &["timm"]) {
        let theirs: Vec<i64> = python(&script).split_whitespace().map(|word| word.parse().unwrap()).collect();
        assert_eq!(indices(&thrice), theirs);
    }
    let (plain, repeated) = (batches(&once, 2, 0), batches(&thrice, 2, 0));
    assert_eq!(repeated.len(), 6);
    // The first time as without repeats, then otherwise.
    assert!(repeated[0].xs.get(0).equal(&plain[0].xs.get(0)));
    assert!(repeated[0].xs.get(3).equal(&plain[0].xs.get(1)));
    assert!(!repeated[0].xs.get(1).equal(&repeated[0].xs.get(0)));
    assert!(!repeated[0].xs.get(2).equal(&repeated[0].xs.get(1)));
    for from in 1..6 {
        let rest = batches(&thrice, 2, from);
        assert!(rest.iter().zip(&repeated[from..]).all(|(a, b)| a.xs.equal(&b.xs)), "from {from}");
    }
}
