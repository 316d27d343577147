//! Augmentations against the formulas of their papers and of torchvision, written out in Python.

use std::sync::Arc;

use tch::{Device, Kind, Tensor};
use tikhonov::data::augment::{self, Augment, Pipeline};
use tikhonov::data::loader::{Batch, Loader, LoaderOptions, Preparation};
use tikhonov::data::mask::{Encoding, Masks};
use tikhonov::data::{DataSpec, Samples, Targets};
use tikhonov::util::exit_code::{self, ExitCode};
use tikhonov::util::rng::{CounterRng, RngStream};

use crate::common::python;
use crate::loader::{augment as steps, batches, dataset, floats, options, pictures};

/// The numbers that the loader's seed draws for the samples 0..n in epoch 0, and the result of one step.
fn run(yaml: &str, n: i64, channels: i64, height: i64, width: i64) -> (Vec<f64>, Vec<u8>, Vec<f64>) {
    let set = pictures(n, channels, height, width);
    let Samples::Resident(levels) = &set.samples else { unreachable!() };
    let list = steps(yaml);
    let pipeline = Pipeline::new(&list, &set.shape, false).unwrap();
    let mut numbers = Vec::new();
    for index in 0..n as u64 {
        pipeline.sample(&mut CounterRng::new(7, 0, index, RngStream::Augment), [0, 0], &mut numbers);
    }
    let prep = Preparation { augment: list, ..Preparation::default() };
    let whole = LoaderOptions { batch_size: n as usize, kind: Kind::Double, ..options() };
    let batch = batches(&Loader::new(&set, &prep, whole).unwrap(), 0, 0).remove(0);
    let place: Vec<i64> =
        (0..n).map(|i| batch.indices.iter().position(|&at| at == i).unwrap() as i64).collect();
    let xs = batch.xs.index_select(0, &Tensor::from_slice(&place));
    (numbers, Vec::try_from(levels.view(-1)).unwrap(), floats(&xs))
}

/// Runs `body`, which makes `y` `[N, C, H, W]` of `x` (levels / 255, float64) and the drawn numbers `p`.
fn python_run(body: &str, (numbers, levels, _): &(Vec<f64>, Vec<u8>, Vec<f64>), shape: [i64; 4]) -> Vec<f64> {
    let script = format!(
        "import torch, math\nimport torch.nn.functional as F\ntorch.set_printoptions(precision=17)\n\
         n, c, h, w = {shape:?}\n\
         x = torch.tensor({levels:?}, dtype=torch.float64).view(n, c, h, w) / 255\n\
         p = torch.tensor({numbers:?}, dtype=torch.float64).view(n, -1)\n{body}\n\
         print(*y.reshape(-1).tolist())"
    );
    python(&script).split_whitespace().map(|word| word.parse().unwrap()).collect()
}

fn close(got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len());
    let worst = got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(worst <= tolerance, "differs by {worst}");
}

/// One use of each augmentation.
const EXAMPLES: &[(&str, &str)] = &[
    ("flip", "{horizontal: true, vertical: true}"),
    ("crop", "{padding: 3, size: [10, 13], fill: 51}"),
    ("dihedral", "{}"),
    ("random_resized_crop", "{scale: [0.3, 0.8]}"),
    ("rotation", "{degrees: 30, fill: 9}"),
    ("affine", "{degrees: 30, translate: [0.2, 0.2], scale: [0.7, 1.3], shear: 5, fill: 51}"),
    ("perspective", "{interpolation: nearest, p: 1}"),
    ("color_jitter", "{brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.2}"),
    ("grayscale", "{p: 1}"),
    ("gaussian_blur", "{kernel_size: 3, sigma: 1}"),
    ("adjust_sharpness", "{sharpness_factor: 2, p: 1}"),
    ("autocontrast", "{p: 1}"),
    ("equalize", "{p: 1}"),
    ("invert", "{p: 1}"),
    ("solarize", "{threshold: 100, p: 1}"),
    ("posterize", "{bits: 1, p: 1}"),
    ("jpeg", "{quality: [5, 20]}"),
    ("rand_augment", "{}"),
    ("trivial_augment_wide", "{}"),
    ("noise", "{sigma: 0.2}"),
    ("cutout", "{size: 5}"),
    ("random_erasing", "{p: 1, value: random}"),
    ("mixup", "{alpha: 1}"),
    ("cutmix", "{}"),
];

#[test]
fn every_augmentation_is_read_changes_images_and_goes_with_masks_or_is_refused_by_name() {
    let names: Vec<_> = EXAMPLES.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, Augment::NAMES, "each augmentation of the table needs an example here");
    let set = pictures(16, 3, 24, 24);
    let plain = Loader::new(&set, &Preparation::default(), options()).unwrap();
    let plain = batches(&plain, 0, 0);
    // The mask of a picture is its second channel, so that the two can be compared wherever they go.
    let Samples::Resident(levels) = &set.samples else { unreachable!() };
    let levels = levels.remainder(3);
    let masked = |targets| {
        let mut set = dataset(Tensor::cat(&[&levels.narrow(1, 0, 2), &levels.narrow(1, 1, 1)], 1), targets);
        set.shape[0] = 2;
        set
    };
    let masks = Masks {
        encoding: Encoding::numbers(3, Vec::new()),
        pixels: vec![0; 3],
        ignored: 0,
        looked_at: [16, 16],
        reading: String::new(),
    };
    let (masks, images) =
        (masked(Targets::Masks(Arc::new(masks))), masked(Targets::Images { channels: 1, scale: 1 }));
    for (name, values) in EXAMPLES {
        let yaml = format!("{{train: {{shapes: {{count: 8}}}}, augment: [{{{name}: {values}}}]}}");
        let spec: DataSpec = tikhonov::util::yaml::decode(&serde_yaml::from_str(&yaml).unwrap()).expect(name);
        spec.validate(&[]).expect(name);
        let prep = Preparation { augment: spec.augment, ..Preparation::default() };
        assert_eq!(prep.augment[0].name(), *name);
        let loader = Loader::new(&set, &prep, options()).expect(name);
        let changed = batches(&loader, 0, 0);
        assert!(changed.iter().zip(&plain).all(|(a, b)| !a.xs.equal(&b.xs)), "{name} changes nothing");
        assert_eq!(changed[0].xs.size()[1..], *loader.shape(), "{name}");
        for set in [&masks, &images] {
            let untouched = batches(&Loader::new(set, &Preparation::default(), options()).unwrap(), 0, 0);
            match Loader::new(set, &prep, options()) {
                Ok(loader) => {
                    for (batch, plain) in batches(&loader, 0, 0).iter().zip(&untouched) {
                        let target = |batch: &Batch| match batch.ys.kind() {
                            Kind::Int64 => batch.ys.shallow_clone(),
                            _ => (batch.ys.select(1, 0) * 255.0).round(),
                        };
                        let (image, target, plain) =
                            ((batch.xs.select(1, 1) * 255.0).round(), target(batch), target(plain));
                        let unknown = target.gt(2).logical_or(&target.lt(-100)).any().int64_value(&[]);
                        assert!(unknown == 0 || batch.ys.kind() != Kind::Int64, "{name}: {unknown}");
                        // Padding: level 51 of images, ignored in masks.
                        let differs = match *name {
                            // Images are interpolated, and masks are not.
                            "rotation" | "random_resized_crop" => continue,
                            "flip" | "crop" | "dihedral" | "affine" | "perspective" => {
                                target.not_equal_tensor(&image).logical_and(&target.ge(0))
                            }
                            _ => target.not_equal_tensor(&plain),
                        };
                        assert_eq!(differs.any().int64_value(&[]), 0, "{name}");
                        assert!(target.ge(0).any().int64_value(&[]) == 1, "{name}");
                    }
                }
                Err(error) => {
                    assert_eq!(exit_code::code(&error), ExitCode::Usage as u8);
                    let text = error.to_string();
                    assert!(text.contains(name), "{text}");
                    let ends = [
                        "flip, crop, dihedral, random_resized_crop, rotation, affine and perspective do",
                        "does not go with targets that are masks; remove it",
                        // Of images with two channels.
                        "remove it",
                        "samples are [2, 24, 24]: saturation and hue need 3 channels; leave them out",
                    ];
                    assert!(ends.iter().any(|end| text.ends_with(end)), "{text}");
                }
            }
        }
    }
}

#[test]
fn the_one_pass_over_bytes_has_the_bits_of_libtorchs_operations_for_every_augmentation() {
    let set = pictures(16, 3, 12, 12);
    let Samples::Resident(levels) = &set.samples else { unreachable!() };
    for (name, values) in EXAMPLES {
        let prep =
            Preparation { augment: steps(&format!("[{{{name}: {values}}}]")), ..Preparation::default() };
        for kind in [Kind::Float, Kind::Double] {
            // The same levels as floating-point pictures go through tensors.
            let floats = dataset(
                levels.to_kind(kind) / 255.0,
                Targets::Classes((0..16).map(|index| index % 3).collect()),
            );
            let options = LoaderOptions { kind, ..options() };
            let bytes = Loader::new(&set, &prep, options.clone()).unwrap();
            let tensors = match Loader::new(&floats, &prep, options) {
                Ok(loader) => loader,
                Err(error) => {
                    let what =
                        format!("{name}: computes 8-bit levels, and the samples are {kind:?}: remove it");
                    assert!(error.to_string().ends_with(&what), "{error}");
                    continue;
                }
            };
            for (a, b) in batches(&bytes, 0, 0).iter().zip(batches(&tensors, 0, 0)) {
                assert!(a.xs.equal(&b.xs) && a.ys.equal(&b.ys), "{name} {kind:?}");
            }
        }
    }
}

#[test]
fn dihedral_symmetries_equal_numpys() {
    // Between two crops, so that padding turns too.
    let got = run(
        "[{crop: {padding: 2, size: 7, fill: 102}}, {dihedral: {}}, {crop: {size: [7, 5]}}]",
        40,
        2,
        6,
        6,
    );
    let body = "
import numpy as np
y = torch.empty(n, c, 7, 5, dtype=torch.float64)
for i in range(n):
    t, l, a, h_, v_, t2, l2 = map(int, p[i])
    x_ = np.pad(x[i].numpy(), ((0, 0), (2, 2), (2, 2)), constant_values=102 / 255)[:, t + 2:t + 9, l + 2:l + 9]
    if a: x_ = x_.transpose(0, 2, 1)
    if h_: x_ = x_[:, :, ::-1]
    if v_: x_ = x_[:, ::-1]
    y[i] = torch.from_numpy(x_[:, t2:t2 + 7, l2:l2 + 5].copy())";
    close(&got.2, &python_run(body, &got, [40, 2, 6, 6]), 0.0);
    for bit in 2..5 {
        let set = got.0.chunks(7).map(|row| row[bit]).sum::<f64>();
        assert!(set > 8.0 && set < 32.0, "about half of 40: {set}");
    }
}

#[test]
fn flips_crops_and_cutouts_equal_python() {
    let yaml =
        "[{flip: {horizontal: true, vertical: true}}, {crop: {padding: 3, fill: 51}}, {cutout: {size: 3}}]";
    let got = run(yaml, 12, 3, 7, 6);
    let body = "
y = torch.empty_like(x)
for i in range(n):
    v = x[i]
    if p[i, 0] > 0: v = v.flip(2)
    if p[i, 1] > 0: v = v.flip(1)
    v = F.pad(v, [3] * 4, value=51 / 255)
    t, l = int(p[i, 2]) + 3, int(p[i, 3]) + 3
    v = v[:, t:t + h, l:l + w].clone()
    a, b, c0, d = map(int, p[i, 4:8])
    v[:, a:b, c0:d] = 0
    y[i] = v";
    close(&got.2, &python_run(body, &got, [12, 3, 7, 6]), 0.0);
    let flips = got.0.chunks(8).map(|row| row[0] + row[1]).sum::<f64>();
    assert!(flips > 4.0 && flips < 20.0, "about half of 24: {flips}");
}

/// The pictures of one epoch under one step, in the order of the set: `levels` `[N, 1, H, W]` as float64, white at 1.
fn augmented(yaml: &str, levels: &Tensor) -> Tensor {
    let set = dataset(levels.shallow_clone(), Targets::Unknown);
    let prep = Preparation { augment: steps(yaml), ..Preparation::default() };
    let n = levels.size()[0];
    let whole = LoaderOptions { batch_size: n as usize, kind: Kind::Double, ..options() };
    let batch = batches(&Loader::new(&set, &prep, whole).unwrap(), 0, 0).remove(0);
    let order = Tensor::from_slice(&batch.indices).argsort(0, false);
    batch.xs.index_select(0, &order)
}

#[test]
fn each_axis_is_flipped_as_often_as_p_says() {
    // White is the upper left quarter of a picture of 2 × 2.
    let n = 4000;
    let one = Tensor::from_slice(&[255u8, 0, 0, 0]).view([1, 1, 2, 2]);
    let flipped = augmented(
        "[{flip: {horizontal: true, vertical: true, p: 0.2}}]",
        &one.expand([n, 1, 2, 2], false).contiguous(),
    );
    let [right, below] = [3, 2].map(|axis| flipped.narrow(axis, 1, 1).sum(Kind::Double).double_value(&[]));
    let both = flipped.narrow(3, 1, 1).narrow(2, 1, 1).sum(Kind::Double).double_value(&[]);
    for (count, share) in [(right, 0.2), (below, 0.2), (both, 0.04)] {
        // Four standard deviations.
        assert!((count / n as f64 - share).abs() < 0.026, "{count} of {n}, not {share}");
    }
    for (axis, name) in [(3, "horizontal"), (2, "vertical")] {
        let sure = augmented(&format!("[{{flip: {{{name}: true, p: 1}}}}]"), &one);
        assert!(sure.equal(&(one.to_kind(Kind::Double) / 255.0).flip([axis])), "{name}");
    }
}

#[test]
fn crops_begin_at_every_place_of_the_padded_picture_equally_often() {
    // One white pixel, in the middle of 5 × 5: where it is afterwards says where the crop began.
    let n = 5000;
    let picture = Tensor::zeros([1, 1, 5, 5], (Kind::Uint8, Device::Cpu));
    let _ = picture.narrow(2, 2, 1).narrow(3, 2, 1).fill_(255);
    let cropped = augmented("[{crop: {padding: 2}}]", &picture.expand([n, 1, 5, 5], false).contiguous());
    let places = floats(&cropped.sum_dim_intlist([0i64, 1].as_slice(), false, Kind::Double));
    // 25 places of 1/25 each: five standard deviations of 14.
    assert!(places.iter().all(|count| (count - 200.0).abs() < 70.0), "{places:?}");
}

#[test]
fn a_cutout_of_any_size_is_as_large_as_asked_where_the_border_does_not_cut_it() {
    let white = Tensor::full([400, 1, 12, 12], 255, (Kind::Uint8, Device::Cpu));
    for (size, sides) in [("3", [3.0, 3.0]), ("4", [4.0, 4.0]), ("[1, 5]", [1.0, 5.0])] {
        let cut: Tensor = 1.0 - augmented(&format!("[{{cutout: {{size: {size}}}}}]"), &white);
        // The largest extent over all samples, downwards and across.
        let most = [2, 3].map(|axis| cut.sum_dim_intlist([axis].as_slice(), false, Kind::Double).max());
        assert_eq!(most.map(|most| most.double_value(&[])), sides, "{size}");
    }
}

#[test]
fn a_fill_is_a_level_whatever_the_pictures_are_kept_in_and_a_width_goes_both_ways() {
    for white in [
        Tensor::full([50, 1, 4, 4], 255, (Kind::Uint8, Device::Cpu)),
        Tensor::ones([50, 1, 4, 4], (Kind::Double, Device::Cpu)),
    ] {
        let cropped = floats(&augmented("[{crop: {padding: 2, fill: 51}}]", &white));
        assert!(cropped.contains(&0.2) && cropped.iter().all(|value| [0.2, 1.0].contains(value)));
    }
    let grey = Tensor::full([200, 1, 1, 1], 0.5, (Kind::Double, Device::Cpu));
    let jittered = floats(&augmented("[{color_jitter: {brightness: 0.4}}]", &grey));
    let (least, most) =
        (jittered.iter().copied().fold(1.0, f64::min), jittered.iter().copied().fold(0.0, f64::max));
    assert!((0.3..0.32).contains(&least) && (0.68..=0.7).contains(&most), "{least} to {most}");
}

#[test]
fn mirrored_padding_equals_numpy() {
    for (mode, numpy) in [("reflect", "reflect"), ("symmetric", "symmetric"), ("edge", "edge")] {
        let got = run(&format!("[{{crop: {{padding: 3, padding_mode: {mode}}}}}]"), 10, 1, 5, 6);
        let body = format!(
            "import numpy as np
y = torch.empty_like(x)
for i in range(n):
    v = np.pad(x[i, 0].numpy(), 3, mode='{numpy}')
    t, l = int(p[i, 0]) + 3, int(p[i, 1]) + 3
    y[i, 0] = torch.from_numpy(v[t:t + h, l:l + w])"
        );
        close(&got.2, &python_run(&body, &got, [10, 1, 5, 6]), 0.0);
    }
}

#[test]
fn random_resized_crops_equal_pytorchs_antialiased_interpolation() {
    let got = run("[{random_resized_crop: {size: [6, 9], scale: [0.1, 1]}}]", 14, 3, 17, 13);
    let body = "
y = torch.stack([
    F.interpolate(x[i:i+1, :, int(t):int(t + a), int(l):int(l + b)], size=(6, 9), mode='bilinear', antialias=True)[0]
    for i, (t, l, a, b) in enumerate(p.tolist())])";
    close(&got.2, &python_run(body, &got, [14, 3, 17, 13]), 1e-12);
}

#[test]
fn random_resized_crops_have_the_asked_area_and_proportions() {
    let list = steps("[{random_resized_crop: {scale: [0.2, 0.5]}}]");
    let Augment::RandomResizedCrop(crop) = &list[0] else { unreachable!() };
    let (mut area, n) = (0.0, 4000);
    for index in 0..n {
        let [top, left, h, w] =
            crop.rectangle([200, 300], &mut CounterRng::new(1, 0, index, RngStream::Augment));
        assert!(top >= 0.0 && left >= 0.0 && top + h <= 200.0 && left + w <= 300.0);
        let share = h * w / 60000.0;
        assert!(share > 0.195 && share < 0.505, "{share}");
        assert!(w / h > 0.74 && w / h < 1.35, "{}", w / h);
        area += share / n as f64;
    }
    assert!((area - 0.35).abs() < 0.01, "{area}");
    // The ratio is width by height.
    let list = steps("[{random_resized_crop: {scale: [0.1, 0.2], ratio: [2, 3]}}]");
    let Augment::RandomResizedCrop(crop) = &list[0] else { unreachable!() };
    for index in 0..100 {
        let [_, _, h, w] = crop.rectangle([200, 300], &mut CounterRng::new(1, 0, index, RngStream::Augment));
        assert!(w / h > 1.95 && w / h < 3.05, "{w} by {h}");
    }
    // No rectangle of these proportions fits: the largest centred one.
    let list = steps("[{random_resized_crop: {scale: [1, 1]}}]");
    let Augment::RandomResizedCrop(crop) = &list[0] else { unreachable!() };
    let drawn = crop.rectangle([100, 1000], &mut CounterRng::new(1, 0, 0, RngStream::Augment));
    assert_eq!(drawn, [0.0, 433.0, 100.0, 133.0]);
}

#[test]
fn rotations_equal_torchvisions() {
    let got = run("[{rotation: {degrees: 70}}]", 12, 3, 9, 14);
    // torchvision.transforms.functional.rotate for tensors: _get_inverse_affine_matrix, _gen_affine_grid.
    let body = "
y = torch.empty_like(x)
for i in range(n):
    r = math.radians(-p[i, 0].item())
    theta = torch.tensor([[math.cos(r), math.sin(r), 0.], [-math.sin(r), math.cos(r), 0.]], dtype=torch.float64)
    base = torch.empty(1, h, w, 3, dtype=torch.float64)
    base[..., 0] = torch.linspace(-w * .5 + .5, w * .5 - .5, w, dtype=torch.float64)
    base[..., 1] = torch.linspace(-h * .5 + .5, h * .5 - .5, h, dtype=torch.float64).unsqueeze(-1)
    base[..., 2] = 1
    grid = base.view(1, h * w, 3).matmul(theta.T.unsqueeze(0) / torch.tensor([.5 * w, .5 * h], dtype=torch.float64))
    y[i] = F.grid_sample(x[i:i+1], grid.view(1, h, w, 2), mode='bilinear', padding_mode='zeros', align_corners=False)";
    close(&got.2, &python_run(body, &got, [12, 3, 9, 14]), 1e-12);
    assert!(got.0.iter().all(|angle| angle.abs() <= 70.0) && got.0.iter().any(|angle| *angle < -10.0));
}

#[test]
fn a_positive_angle_turns_counter_clockwise_and_the_corners_get_the_fill() {
    let mut levels = vec![0u8; 25];
    levels[14] = 255; // right of the centre
    let set = dataset(Tensor::from_slice(&levels).view([1, 1, 5, 5]), Targets::Unknown);
    let list = steps("[{rotation: {degrees: [90, 90]}}]");
    let loader =
        Loader::new(&set, &Preparation { augment: list, ..Preparation::default() }, options()).unwrap();
    let xs = batches(&loader, 0, 0).remove(0).xs;
    assert!((xs.double_value(&[0, 0, 0, 2]) - 1.0).abs() < 1e-6, "above the centre");
    let list = steps("[{rotation: {degrees: [45, 45], fill: 255}}]");
    let loader =
        Loader::new(&set, &Preparation { augment: list, ..Preparation::default() }, options()).unwrap();
    let xs = batches(&loader, 0, 0).remove(0).xs;
    // The corner comes from √8 above the centre, between the border at 2 and the fill at 3.
    assert!((xs.double_value(&[0, 0, 0, 0]) - (8f64.sqrt() - 2.0)).abs() < 1e-6);
}

#[test]
fn colour_jitter_equals_torchvisions_formulas_in_order() {
    let got =
        run("[{color_jitter: {brightness: 0.6, contrast: 0.7, saturation: [0.2, 2], hue: 0.4}}]", 9, 3, 5, 4);
    // torchvision's _blend, rgb_to_grayscale, _rgb2hsv and _hsv2rgb for tensors.
    let body = "
def grey(v): return (0.2989 * v[0] + 0.587 * v[1] + 0.114 * v[2]).unsqueeze(0)
def blend(a, b, f): return (f * a + (1 - f) * b).clamp(0, 1)
def rgb2hsv(v):
    r, g, b = v.unbind(0)
    maxc, minc = v.max(0).values, v.min(0).values
    eqc = maxc == minc
    cr = maxc - minc
    ones = torch.ones_like(maxc)
    s = cr / torch.where(eqc, ones, maxc)
    d = torch.where(eqc, ones, cr)
    rc, gc, bc = (maxc - r) / d, (maxc - g) / d, (maxc - b) / d
    hr = (maxc == r) * (bc - gc)
    hg = ((maxc == g) & (maxc != r)) * (2.0 + rc - bc)
    hb = ((maxc != g) & (maxc != r)) * (4.0 + gc - rc)
    return torch.fmod((hr + hg + hb) / 6.0 + 1.0, 1.0), s, maxc
def hsv2rgb(hh, s, v):
    i = torch.floor(hh * 6.0)
    f = hh * 6.0 - i
    i = i.to(torch.int64) % 6
    a = (v * (1 - s)).clamp(0, 1)
    q = (v * (1 - s * f)).clamp(0, 1)
    t = (v * (1 - s * (1 - f))).clamp(0, 1)
    pick = lambda *o: torch.stack(o).gather(0, i.unsqueeze(0))[0]
    return torch.stack([pick(v, q, a, a, t, v), pick(t, v, v, q, a, a), pick(a, a, t, v, v, q)])
y = torch.empty_like(x)
for k in range(n):
    fb, fc, fs, fh = p[k].tolist()
    v = blend(x[k], torch.zeros_like(x[k]), fb)
    v = blend(v, grey(v).mean(), fc)
    v = blend(v, grey(v), fs)
    hh, s, m = rgb2hsv(v)
    y[k] = hsv2rgb((hh + fh) % 1.0, s, m)";
    close(&got.2, &python_run(body, &got, [9, 3, 5, 4]), 1e-12);
    for row in got.0.chunks(4) {
        assert!(row[0] >= 0.4 && row[0] < 1.6 && row[2] >= 0.2 && row[2] < 2.0 && row[3].abs() <= 0.4);
    }
}

#[test]
fn cutout_blanks_a_square_of_the_normalised_picture_with_probability_p() {
    let list = steps("[{cutout: {size: 6, p: 0.25}}]");
    let (pipeline, mut params) = (Pipeline::new(&list, &[3, 28, 20], false).unwrap(), Vec::new());
    let (mut blanked, n) = (0, 4000);
    for index in 0..n {
        pipeline.sample(&mut CounterRng::new(1, 0, index, RngStream::Augment), [0, 0], &mut params);
        let [top, bottom, left, right] = params.drain(..).as_slice().try_into().unwrap();
        if right > left {
            blanked += 1;
            assert!((3.0..=6.0).contains(&(bottom - top)) && (3.0..=6.0).contains(&(right - left)));
            assert!(top >= 0.0 && bottom <= 28.0 && left >= 0.0 && right <= 20.0);
        }
    }
    assert!((f64::from(blanked) / n as f64 - 0.25).abs() < 0.03, "{blanked} of {n}");
}

#[test]
fn noise_has_the_asked_deviation_and_is_independent_of_its_neighbours() {
    let set =
        dataset(Tensor::zeros([50, 40, 50], (Kind::Double, Device::Cpu)).view([50, 2000]), Targets::Unknown);
    let prep = Preparation { augment: steps("[{noise: {sigma: 0.3}}]"), ..Preparation::default() };
    let loader = Loader::new(&set, &prep, LoaderOptions { batch_size: 50, ..options() }).unwrap();
    let xs = batches(&loader, 0, 0).remove(0).xs;
    assert_eq!(xs.kind(), Kind::Float);
    assert!((xs.std(false).double_value(&[]) - 0.3).abs() < 0.004);
    assert!(xs.mean(Kind::Double).double_value(&[]).abs() < 0.004);
    let shifted = (xs.narrow(1, 0, 1999) * xs.narrow(1, 1, 1999)).mean(Kind::Double).double_value(&[]);
    assert!(shifted.abs() < 0.002, "{shifted}");
    let samples = (xs.narrow(0, 0, 49) * xs.narrow(0, 1, 49)).mean(Kind::Double).double_value(&[]);
    assert!(samples.abs() < 0.002, "{samples}");
}

#[test]
fn mixup_mixes_pictures_and_targets_by_the_same_lambda() {
    let n = 32;
    let xs = Tensor::arange(n, (Kind::Double, Device::Cpu)).view([n, 1]);
    // One class per sample, so that the targets tell λ and the partner.
    let set = dataset(xs, Targets::Classes((0..n).collect()));
    let prep = Preparation { augment: steps("[{mixup: {alpha: 0.8}}]"), ..Preparation::default() };
    let kind = Kind::Double;
    let loader = Loader::new(&set, &prep, LoaderOptions { batch_size: 32, kind, ..options() }).unwrap();
    let batch = batches(&loader, 0, 0).remove(0);
    assert_eq!(batch.ys.size(), [n, n]);
    close(&floats(&batch.ys.sum_dim_intlist([1i64].as_slice(), false, kind)), &vec![1.0; 32], 1e-12);
    // Σ y·class is the same mixture of the class numbers, which are the samples.
    let classes = Tensor::arange(n, (kind, Device::Cpu)).view([n, 1]);
    close(&floats(&batch.ys.matmul(&classes)), &floats(&batch.xs), 1e-12);
    assert!(floats(&batch.ys).iter().filter(|&&y| y > 0.0).count() > 40, "nothing was mixed");
}

#[test]
fn cutmix_targets_follow_the_area_that_was_replaced() {
    let n = 24;
    // Sample i is a picture of level i everywhere.
    let levels: Vec<u8> = (0..n as u8).flat_map(|level| vec![level; 2 * 7 * 9]).collect();
    let set = dataset(Tensor::from_slice(&levels).view([n, 2, 7, 9]), Targets::Classes((0..n).collect()));
    let prep = Preparation { augment: steps("[{cutmix: {alpha: 1}}]"), ..Preparation::default() };
    let kind = Kind::Double;
    let loader = Loader::new(&set, &prep, LoaderOptions { batch_size: 24, kind, ..options() }).unwrap();
    let mut areas = Vec::new();
    for epoch in 0..20 {
        let batch = batches(&loader, epoch, 0).remove(0);
        close(&floats(&batch.ys.sum_dim_intlist([1i64].as_slice(), false, kind)), &[1.0; 24], 1e-12);
        let seen = batch.xs.mean_dim([1i64, 2, 3].as_slice(), false, kind) * 255.0;
        let classes = Tensor::arange(n, (kind, Device::Cpu)).view([n, 1]);
        close(&floats(&batch.ys.matmul(&classes)), &floats(&seen), 1e-9);
        // What is left of a sample whose partner is another one.
        let own = batch.ys.gather(1, &Tensor::from_slice(&batch.indices).unsqueeze(1), false);
        areas.push(own.min().double_value(&[]));
    }
    assert!(areas.iter().any(|area| *area < 0.4), "windows are as large as λ asks for: {areas:?}");
    areas.sort_by(f64::total_cmp);
    areas.dedup();
    assert!(areas.len() > 10, "each batch has a λ of its own: {areas:?}");
}

#[test]
fn mixture_weights_have_the_moments_of_a_beta_distribution() {
    // Two samples, 0 and 1, with targets of their own: the smaller share of a mixed batch is min(λ, 1 - λ).
    let xs = Tensor::from_slice(&[0.0, 1.0]).view([2, 1]);
    let ys = Tensor::from_slice(&[1.0, 0.0, 0.0, 1.0]).view([2, 2]);
    for alpha in [0.1, 0.4, 1.0, 3.0] {
        let pipeline =
            Pipeline::new(&steps(&format!("[{{mixup: {{alpha: {alpha}}}}}]")), &[1], false).unwrap();
        let (mut sum, mut squares, mut mixed) = (0.0, 0.0, 0.0);
        for index in 0..20000 {
            let mut draw = CounterRng::new(1, 0, index, RngStream::Mix);
            let (_, ys) = pipeline.mix(xs.shallow_clone(), ys.shallow_clone(), 0, &mut draw);
            let own = ys.double_value(&[0, 0]);
            // With the partner itself nothing is mixed and λ stays unknown.
            if own < 1.0 {
                (sum, squares, mixed) = (sum + own, squares + own * own, mixed + 1.0);
            }
        }
        let (mean, variance) = (sum / mixed, squares / mixed - (sum / mixed).powi(2));
        let want = 1.0 / (4.0 * (2.0 * alpha + 1.0));
        assert!(mixed > 9000.0, "{mixed}");
        assert!((mean - 0.5).abs() < 0.02, "alpha {alpha}: mean {mean}");
        assert!((variance / want - 1.0).abs() < 0.06, "alpha {alpha}: variance {variance}, not {want}");
    }
}

#[test]
fn of_two_mixtures_each_batch_gets_one() {
    let set = pictures(64, 1, 6, 6);
    let both =
        Preparation { augment: steps("[{mixup: {alpha: 1}}, {cutmix: {}}]"), ..Preparation::default() };
    let loader = Loader::new(&set, &both, options()).unwrap();
    let plain = Loader::new(&set, &Preparation::default(), options()).unwrap();
    let mut cut = 0;
    for (mixed, plain) in batches(&loader, 0, 0).iter().zip(batches(&plain, 0, 0)) {
        // CutMix leaves every value a level of some picture.
        let levels = &mixed.xs * 255.0;
        cut += i32::from((&levels - levels.round()).abs().max().double_value(&[]) < 1e-3);
        assert_eq!(mixed.indices, plain.indices);
    }
    assert!((1..8).contains(&cut), "{cut} of 8 were cut");
}

#[test]
fn values_out_of_range_are_refused_with_their_key() {
    let wrong = [
        ("[{flip: {}}]", "0.flip"),
        ("[{flip: {horizontal: true, p: 1.5}}]", "0.flip.p"),
        ("[{flip: {horizontal: true}}, {crop: {}}]", "1.crop"),
        ("[{crop: {size: 0}}]", "0.crop.size"),
        ("[{crop: {padding: 2, fill: 9, padding_mode: edge}}]", "0.crop.fill"),
        ("[{random_resized_crop: {scale: [0, 1]}}]", "0.random_resized_crop.scale"),
        ("[{random_resized_crop: {ratio: [2, 1]}}]", "0.random_resized_crop.ratio"),
        ("[{rotation: {degrees: -3}}]", "0.rotation.degrees"),
        ("[{rotation: {degrees: [10, -10]}}]", "0.rotation.degrees"),
        ("[{color_jitter: {}}]", "0.color_jitter"),
        ("[{color_jitter: {brightness: -0.1}}]", "0.color_jitter.brightness"),
        ("[{color_jitter: {hue: 0.6}}]", "0.color_jitter.hue"),
        ("[{cutout: {size: 4, p: -0.1}}]", "0.cutout.p"),
        ("[{noise: {sigma: 0}}]", "0.noise.sigma"),
        ("[{mixup: {alpha: 0}}]", "0.mixup.alpha"),
        ("[{cutmix: {alpha: -1}}]", "0.cutmix.alpha"),
        ("[{cutout: {size: 4}}, {crop: {padding: 2}}]", "1"),
        ("[{mixup: {alpha: 1}}, {noise: {sigma: 1}}]", "1"),
    ];
    for (yaml, path) in wrong {
        assert_eq!(augment::validate(&steps(yaml)).unwrap_err().path, path, "{yaml}");
    }
    augment::validate(&steps(
        "[{color_jitter: {brightness: 1.5}}, {crop: {padding: 4}}, {cutout: {size: 8}}]",
    ))
    .unwrap();
    let unknown = serde_json::from_str::<Vec<Augment>>(r#"[{"crop": {"paddign": 4}}]"#).unwrap_err();
    assert!(unknown.to_string().contains("paddign"), "{unknown}");
}

#[test]
fn lists_survive_a_round_trip_through_the_resolved_config() {
    let list = steps(
        "[{random_resized_crop: {size: 8}}, {color_jitter: {brightness: 0.2, hue: [-0.1, 0.2]}}, \
         {crop: {padding: 4, size: [3, 4], padding_mode: reflect}}, {cutout: {size: 8}}, {mixup: {alpha: 0.2}}]",
    );
    let text = serde_json::to_string(&list).unwrap();
    assert_eq!(serde_json::from_str::<Vec<Augment>>(&text).unwrap(), list, "{text}");
}
