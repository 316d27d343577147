//! Degradations, losses and scores of images against numpy, scipy, scikit-image, Pillow and torch in Python.

use std::path::Path;

use tch::{Device, Kind, Tensor};
use tikhonov::data::{ImageFile, Mode};
use tikhonov::functional::loss::RegressionLoss;
use tikhonov::metrics::{ImageRules, MetricArgs, MetricCollection, Thresholds, Wanted};
use tikhonov::tasks::degrade::Chain;
use tikhonov::tasks::{Reconstruction, Task, TaskSpec};

use crate::common::{alone, data_dir, python, run, saved, succeeds};

pub fn decode<T: serde::de::DeserializeOwned>(yaml: &str) -> T {
    let tree: serde_json::Value = serde_yaml::from_str(yaml).unwrap();
    tikhonov::util::yaml::decode(&tree).unwrap()
}

/// Runs Python with `folder` as `d`, numpy as `np` and `x` loaded from it in float64.
fn python_beside(folder: &Path, body: &str) -> String {
    python(&format!(
        "import numpy as np, torch\nd = {:?}\nload = lambda name: np.load(f'{{d}}/{{name}}.npy')\nx = load('x')\n{body}",
        folder.to_str().unwrap()
    ))
}

fn save(tensor: &Tensor, folder: &Path, name: &str) {
    tensor.contiguous().write_npy(folder.join(format!("{name}.npy"))).unwrap();
}

/// The worst difference of `y`, which `body` makes of `x`, from what the chain makes of it; both seeded with
/// 7.
fn difference(yaml: &str, train: bool, xs: &Tensor, body: &str) -> f64 {
    let folder = tempfile::tempdir().unwrap();
    save(xs, folder.path(), "x");
    let chain: Chain = decode(yaml);
    chain.validate().unwrap();
    let shape = <[i64; 3]>::try_from(&xs.size()[1..]).unwrap();
    chain.check(shape).unwrap();
    tch::manual_seed(7);
    let degraded = chain.apply(xs, train).unwrap();
    assert_eq!(degraded.size()[1..], chain.output(shape), "{yaml}");
    assert_eq!(degraded.kind(), xs.kind(), "{yaml}");
    save(&degraded, folder.path(), "got");
    let body = format!(
        "x = torch.tensor(x)\ntorch.manual_seed(7)\n{body}\ny = np.asarray(y)\ngot = load('got')\n\
         assert y.shape == got.shape, (y.shape, got.shape)\nprint(abs(y - got).max())"
    );
    python_beside(folder.path(), &body).trim().parse().unwrap()
}

fn images(kind: Kind) -> Tensor {
    tch::manual_seed(1);
    let coarse = Tensor::rand([5, 3, 4, 5], (kind, Device::Cpu));
    // Smooth with a little texture, as photographs are.
    let smooth = coarse.upsample_bilinear2d([24, 31], false, None, None);
    (&smooth + smooth.randn_like() * 0.02).clamp(0.0, 1.0)
}

#[test]
fn noise_equals_that_of_torch_with_the_same_seed() {
    if !alone("restoration::noise_equals_that_of_torch_with_the_same_seed") {
        return;
    }
    let uniform = "lambda low, high: torch.rand(5, 1, 1, 1, dtype=x.dtype) * (high - low) + low";
    let cases = [
        ("gaussian", true, "y = x + torch.randn_like(x) * (25 / 255)".to_owned()),
        (
            "{gaussian: {sigma: [0, 55]}}",
            true,
            format!("s = ({uniform})(0, 55)\ny = x + torch.randn_like(x) * (s / 255)"),
        ),
        ("{gaussian: {sigma: [0, 55]}}", false, "y = x + torch.randn_like(x) * (27.5 / 255)".into()),
        (
            "{gaussian: {sigma: [0, 55], eval_sigma: 50}}",
            false,
            "y = x + torch.randn_like(x) * (50 / 255)".into(),
        ),
        (
            "{gaussian: {sigma: [0, 55], map: true}}",
            true,
            format!(
                "s = ({uniform})(0, 55)\ny = x + torch.randn_like(x) * (s / 255)\n\
                 y = torch.cat([y, (s / 255).expand(5, 1, 24, 31)], 1)"
            ),
        ),
        (
            "{poisson: {peak: [10, 60]}}",
            true,
            format!("s = ({uniform})(10, 60)\ny = torch.poisson(x * s) / s"),
        ),
        (
            "{salt_pepper: {amount: 0.2}}",
            true,
            "u = torch.rand_like(x)\ny = torch.where(u < 0.1, 0.0, torch.where(u < 0.2, 1.0, x))".into(),
        ),
        (
            "[{blur: {gaussian: {sigma: 1}}}, {gaussian: {sigma: 5}}, {salt_pepper: {amount: [0.1, 0.3]}}]",
            true,
            format!(
                "from scipy.ndimage import gaussian_filter\n\
                 y = torch.tensor(gaussian_filter(x.numpy(), (0, 0, 1, 1), radius=(0, 0, 3, 3), mode='mirror'))\n\
                 y = y + torch.randn_like(x) * (5 / 255)\na = ({uniform})(0.1, 0.3)\nu = torch.rand_like(y)\n\
                 y = torch.where(u < a / 2, 0.0, torch.where(u < a, 1.0, y))"
            ),
        ),
    ];
    for kind in [Kind::Float, Kind::Double] {
        let xs = images(kind);
        for (yaml, train, body) in &cases {
            let worst = difference(yaml, *train, &xs, body);
            let allowed = if kind == Kind::Float { 1e-6 } else { 1e-12 };
            assert!(worst <= allowed, "{yaml} ({kind:?}) differs by {worst}");
        }
    }
}

#[test]
fn a_batch_of_one_seeded_with_zero_gets_the_noise_of_the_published_dncnn_numbers() {
    if !alone("restoration::a_batch_of_one_seeded_with_zero_gets_the_noise_of_the_published_dncnn_numbers") {
        return;
    }
    let want = python(
        "import torch\ntorch.manual_seed(0)\nprint(*torch.randn(2, 1, 1, 40, 40).double().view(-1).tolist())",
    );
    let want: Vec<f64> = want.split_whitespace().map(|word| word.parse().unwrap()).collect();
    let task: Reconstruction = decode("{degrade: {gaussian: {sigma: 25}}}");
    tch::manual_seed(0);
    let mut got = Vec::new();
    for _ in 0..2 {
        let image = Tensor::zeros([1, 1, 40, 40], (Kind::Float, Device::Cpu));
        let (xs, _) = task.make_batch(image, Tensor::from_slice(&[-100i64]), false).unwrap();
        got.extend(Vec::<f64>::try_from((xs * (255.0 / 25.0)).to_kind(Kind::Double).view(-1)).unwrap());
    }
    let worst = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(worst < 1e-6, "differs by {worst}");
}

#[test]
fn missing_pixels_are_those_that_the_same_draws_give_in_numpy() {
    if !alone("restoration::missing_pixels_are_those_that_the_same_draws_give_in_numpy") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mask = folder.path().join("mask.png");
    python(&format!(
        "from PIL import Image\nimport numpy as np\n\
         Image.fromarray((np.arange(20 * 15).reshape(20, 15) % 7 < 2).astype('uint8') * 255).save({:?})",
        mask.to_str().unwrap()
    ));
    let zero = "y = np.where(hole, 0, x)";
    let mean = "
y = x.numpy().copy()
for i in range(5):
    for c in range(3):
        h = np.broadcast_to(hole, (5, 1, 24, 31))[i, 0]
        y[i, c][h] = y[i, c][~h].mean()";
    let boxes = "
hole = np.zeros((5, 1, 24, 31), bool)
level = lambda low, high: (torch.rand(5, 1, 1, 1, dtype=x.dtype) * (high - low) + low).view(-1)
draw = lambda: torch.rand(5, 1, 1, 1, dtype=x.dtype).view(-1)
for k in range(3):
    place = []
    for extent in (24, 31):
        side = level(2, 9).round()
        place += [(draw() * (extent + 1 - side)).floor().int().tolist(), side.int().tolist()]
    for i in range(5):
        t, h, l, w = [p[i] for p in place]
        assert t >= 0 and t + h <= 24 and l >= 0 and l + w <= 31
        hole[i, 0, t:t + h, l:l + w] = True";
    // The distance of a pixel from a segment, pixel by pixel.
    let strokes = "
hole = np.zeros((5, 1, 24, 31), bool)
draw = lambda: torch.rand(5, 1, 1, 1, dtype=x.dtype).view(-1).numpy()
for k in range(4):
    y0, x0 = draw() * 23, draw() * 30
    y1, x1 = draw() * 23, draw() * 30
    width = (torch.rand(5, 1, 1, 1, dtype=x.dtype) * 4 + 1).view(-1).numpy()
    for i in range(5):
        p, q = np.array([y0[i], x0[i]]), np.array([y1[i], x1[i]])
        for r in range(24):
            for c in range(31):
                v = np.array([r, c]) - p
                t = min(1, max(0, v @ (q - p) / ((q - p) @ (q - p))))
                hole[i, 0, r, c] |= np.linalg.norm(v - t * (q - p)) <= width[i] / 2";
    let from_file = "
m = np.arange(20 * 15).reshape(20, 15) % 7 < 2
hole = np.tile(m, (2, 3))[None, None, :24, :31]";
    let random = "hole = (torch.rand(5, 1, 24, 31, dtype=x.dtype) < 0.5).numpy()";
    let mask = mask.to_str().unwrap();
    let cases = [
        ("inpainting".to_owned(), format!("{random}\n{zero}")),
        ("{inpainting: {missing: {random: 0.5}, fill: mean}}".into(), format!("{random}\n{mean}")),
        ("{inpainting: {missing: {boxes: {count: 3, size: [2, 9]}}}}".into(), format!("{boxes}\n{zero}")),
        (
            "{inpainting: {missing: {strokes: {count: 4, width: [1, 5]}}}}".into(),
            format!("{strokes}\n{zero}"),
        ),
        (
            format!("{{inpainting: {{missing: {{mask: '{mask}'}}, fill: mean}}}}"),
            format!("{from_file}\n{mean}"),
        ),
    ];
    let xs = images(Kind::Double);
    for (yaml, body) in cases {
        let worst = difference(&yaml, true, &xs, &body);
        assert!(worst < 1e-12, "{yaml} differs by {worst}");
    }
}

/// `imresize` as MATLAB documents it: `contributions` written out, one dimension after the other.
const IMRESIZE: &str = "
def weights(n, out):
    scale = out / n
    def cubic(t):
        t = abs(t)
        return ((1.5 * t**3 - 2.5 * t**2 + 1) * (t <= 1) + (-0.5 * t**3 + 2.5 * t**2 - 4 * t + 2) * ((1 < t) & (t <= 2)))
    h, width = (lambda t: scale * cubic(scale * t), 4 / scale) if scale < 1 else (cubic, 4)
    u = np.arange(1, out + 1) / scale + 0.5 * (1 - 1 / scale)
    left = np.floor(u - width / 2)
    indices = left[:, None] + np.arange(int(np.ceil(width)) + 2)
    w = h(u[:, None] - indices)
    w /= w.sum(1, keepdims=True)
    aux = np.concatenate([np.arange(n), np.arange(n)[::-1]])
    m = np.zeros((out, n))
    for r, (js, ws) in enumerate(zip(aux[np.mod(indices.astype(int) - 1, 2 * n)], w)):
        np.add.at(m[r], js, ws)
    return m
imresize = lambda x, h, w: np.einsum('ah,nchw,bw->ncab', weights(x.shape[2], h), x, weights(x.shape[3], w))
";

#[test]
fn super_resolution_shrinks_and_enlarges_as_imresize_does() {
    if !alone("restoration::super_resolution_shrinks_and_enlarges_as_imresize_does") {
        return;
    }
    let xs = images(Kind::Double);
    for scale in [2, 3, 4] {
        let (h, w) = (24 / scale, 31 / scale);
        let small = format!(
            "{IMRESIZE}\nx = x.numpy()[:, :, :{0}, :{1}]\ny = imresize(x, {h}, {w})",
            h * scale,
            w * scale
        );
        let large = format!("{small}\ny = imresize(y, {}, {})", h * scale, w * scale);
        for (input, body) in [("small", small), ("upscaled", large)] {
            let yaml = format!("{{super_resolution: {{scale: {scale}, input: {input}}}}}");
            let worst = difference(&yaml, true, &xs, &body);
            assert!(worst < 1e-12, "{yaml} differs by {worst}");
        }
    }
}

#[test]
fn blurs_equal_scipy_with_the_kernels_of_fspecial() {
    if !alone("restoration::blurs_equal_scipy_with_the_kernels_of_fspecial") {
        return;
    }
    let xs = images(Kind::Double);
    let filter = "
from scipy.ndimage import correlate
k /= k.sum()
y = np.stack([np.stack([correlate(c, k, mode='mirror') for c in image]) for image in x.numpy()])";
    let gaussian = "g = lambda s, n: np.exp(-(np.arange(n) - n // 2)**2 / (2 * s * s))\n";
    // fspecial.m, `motion`, line by line.
    let motion = "
def motion(p2, p3):
    eps = np.finfo(float).eps
    ln = max(1, p2); half = (ln - 1) / 2; phi = np.mod(p3, 180) / 180 * np.pi
    cosphi, sinphi = np.cos(phi), np.sin(phi); xsign = int(np.sign(cosphi)); lw = 1
    sx = int(np.fix(half * cosphi + lw * xsign - ln * eps)); sy = int(np.fix(half * sinphi + lw - ln * eps))
    x, y = np.meshgrid(np.arange(0, sx + xsign, xsign), np.arange(0, sy + 1))
    d = y * cosphi - x * sinphi
    rad = np.sqrt(x**2 + y**2)
    last = (rad >= half) & (abs(d) <= lw)
    x2 = half - abs((x[last] + d[last] * sinphi) / cosphi)
    d[last] = np.sqrt(d[last]**2 + x2**2)
    d = lw + eps - abs(d)
    d[d < 0] = 0
    a, b = d.shape
    h = np.zeros((2 * a - 1, 2 * b - 1))
    h[:a, :b] = np.rot90(d, 2)
    h[a - 1:, b - 1:] = d
    h /= h.sum() + eps * ln * ln
    return np.flipud(h) if cosphi > 0 else h
";
    let cases = [
        ("{gaussian: {sigma: 1.6}}".to_owned(), format!("{gaussian}k = np.outer(g(1.6, 11), g(1.6, 11))")),
        ("{gaussian: {sigma: 2, size: 7}}".into(), format!("{gaussian}k = np.outer(g(2, 7), g(2, 7))")),
    ];
    let motions =
        [(9.0, 0.0), (15.0, 30.0), (20.0, 45.0), (7.5, 90.0), (12.0, 135.0), (11.0, -20.0), (1.0, 10.0)];
    let motions = motions.map(|(length, angle)| {
        let yaml = format!("{{motion: {{length: {length:?}, angle: {angle:?}}}}}");
        (yaml, format!("{motion}k = motion({length}, {angle})"))
    });
    for (yaml, kernel) in cases.into_iter().chain(motions) {
        let worst = difference(&format!("{{blur: {yaml}}}"), true, &xs, &format!("{kernel}{filter}"));
        assert!(worst < 1e-12, "{yaml} differs by {worst}");
    }
}

#[test]
fn jpeg_artefacts_are_those_of_libjpeg() {
    if !alone("restoration::jpeg_artefacts_are_those_of_libjpeg") {
        return;
    }
    let xs = images(Kind::Double);
    for (channels, quality) in [(1, 10), (3, 10), (3, 40), (1, 50)] {
        let folder = tempfile::tempdir().unwrap();
        let xs = xs.narrow(1, 0, channels);
        save(&xs, folder.path(), "x");
        let chain: Chain = decode(&format!("{{jpeg: {{quality: {quality}}}}}"));
        save(&chain.apply(&xs, true).unwrap(), folder.path(), "got");
        let body = format!(
            "from PIL import Image\nimport io\n
def jpeg(image):
    levels = np.round(image * 255).astype('uint8').transpose(1, 2, 0).squeeze()
    file = io.BytesIO()
    Image.fromarray(levels).save(file, 'jpeg', quality={quality}, subsampling=0)
    levels = np.asarray(Image.open(file)).reshape(24, 31, -1)
    return levels.transpose(2, 0, 1) / 255.0
want = np.stack([jpeg(image) for image in x])
got = load('got')
lost = np.sqrt(((want - x)**2).mean())
print(np.sqrt(((got - want)**2).mean()) / lost, abs(np.sqrt(((got - x)**2).mean()) / lost - 1))"
        );
        let printed = python_beside(folder.path(), &body);
        let [apart, more] =
            [0, 1].map(|i| printed.split_whitespace().nth(i).unwrap().parse::<f64>().unwrap());
        // Two transforms that round differently: what sets them apart is small beside what both lose.
        assert!(apart < 0.35 && more < 0.02, "channels {channels}, quality {quality}: {apart}, {more}");
    }
}

#[test]
fn psnr_and_ssim_are_those_of_scikit_image() {
    let folder = tempfile::tempdir().unwrap();
    let truth = images(Kind::Double);
    let xs = (&truth + truth.randn_like() * 0.1).to_kind(Kind::Float);
    save(&truth, folder.path(), "x");
    save(&xs.to_kind(Kind::Double), folder.path(), "noisy");
    let rules = [(false, 0, 3), (false, 0, 1), (true, 0, 3), (true, 3, 3)];
    for (y, shave, channels) in rules {
        let rules = ImageRules { y, shave, clamp_degraded: false };
        let args = MetricArgs { image: rules, ..MetricArgs::default() };
        let mut meter = MetricCollection::new("reconstruction", &args, Wanted::Names(&[]));
        for (start, end) in [(0, 2), (2, 5)] {
            let part = |images: &Tensor| {
                images.narrow(0, start, end - start).narrow(1, 0, channels).to_kind(Kind::Float)
            };
            // The restored image is the noisy one, clamped.
            meter.update(&part(&xs), &part(&xs).into(), &part(&truth));
        }
        let scores = meter.compute(Thresholds::Given(&[]));
        let y = if y { "True" } else { "False" };
        let body = format!(
            "from skimage.metrics import structural_similarity, peak_signal_noise_ratio
from skimage.color import rgb2ycbcr
def view(image):
    image = image[:{channels}].transpose(1, 2, 0)
    image = rgb2ycbcr(image)[..., :1] / 255 if {y} else image
    return image[{shave}:24 - {shave}, {shave}:31 - {shave}]
rows = []
for truth, noisy in zip(x, load('noisy')):
    truth, noisy, restored = view(truth), view(noisy), view(noisy.clip(0, 1))
    ssim = lambda image: structural_similarity(truth, image, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False, data_range=1, channel_axis=2)
    psnr = lambda image: peak_signal_noise_ratio(truth, image, data_range=1)
    rows.append([psnr(restored), psnr(noisy), ssim(restored), ssim(noisy)])
print(*np.mean(rows, 0))"
        );
        let printed = python_beside(folder.path(), &body);
        let want: Vec<f64> = printed.split_whitespace().map(|word| word.parse().unwrap()).collect();
        for (name, want) in ["psnr", "psnr_degraded", "ssim", "ssim_degraded"].iter().zip(want) {
            let got = scores.get(name).unwrap();
            assert!((got - want).abs() < 1e-6, "{name}, y {y}: {got} is not {want}");
        }
    }
}

#[test]
fn the_ssim_loss_has_the_values_of_scikit_image_and_a_gradient() {
    let folder = tempfile::tempdir().unwrap();
    let truth = images(Kind::Double);
    let other = (&truth + truth.randn_like() * 0.1).set_requires_grad(true);
    save(&truth, folder.path(), "x");
    save(&other.detach(), folder.path(), "other");
    let loss: RegressionLoss = decode("{ssim: {alpha: 0.7}}");
    let value = loss.of(&other, &truth);
    value.backward();
    assert!(f64::try_from(other.grad().abs().max()).unwrap() > 0.0);
    let want: f64 = python_beside(
        folder.path(),
        "from skimage.metrics import structural_similarity as s
other = load('other')
ssim = np.mean([s(a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1, channel_axis=0)
    for a, b in zip(x, other)])
print(0.7 * (1 - ssim) + 0.3 * abs(x - other).mean())",
    )
    .trim()
    .parse()
    .unwrap();
    assert!((value.double_value(&[]) - want).abs() < 1e-9);
    let charbonnier: RegressionLoss = decode("{charbonnier: {eps: 0.01}}");
    let by_hand = ((&other - &truth).square() + 1e-4).sqrt().mean(Kind::Double);
    assert!((charbonnier.of(&other, &truth) - by_hand).abs().double_value(&[]) < 1e-15);
    assert_eq!(decode::<RegressionLoss>("charbonnier"), RegressionLoss::Charbonnier { eps: 1e-3 });
    assert_eq!(decode::<RegressionLoss>("l1"), RegressionLoss::Mae);
}

/// Mean scores of bicubic alone on a folder of RGB pictures.
fn bicubic(folder: &Path, task: &str) -> (f64, f64) {
    let task = decode::<TaskSpec>(task).build();
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let mut meter = MetricCollection::new(task.name(), &task.metric_args(&[]), Wanted::Names(&[]));
    for path in files {
        let picture = ImageFile::new(path, Mode::Rgb).decode().unwrap();
        let size = [1, 3, picture.height as i64, picture.width as i64];
        let image = Tensor::from_slice(&picture.planes()).view(size).to_kind(Kind::Float) / 255.0;
        let unknown = Tensor::from_slice(&[-100i64]);
        let (xs, ys) = task.make_batch(image, unknown, false).unwrap();
        assert_eq!(xs.size()[1..], task.input(&size[1..]));
        meter.update(&xs, &ys.shallow_clone().into(), &ys);
    }
    let scores = meter.compute(Thresholds::Given(&[]));
    (scores.get("psnr_degraded").unwrap(), scores.get("ssim_degraded").unwrap())
}

#[test]
fn bicubic_scores_on_set5_are_the_published_ones() {
    let Some(data) = data_dir("bicubic_scores_on_set5_are_the_published_ones") else { return };
    // Kim et al. 2016 (VDSR), table 2: bicubic.
    let published = [("Set5", 2, 33.66), ("Set5", 3, 30.39), ("Set5", 4, 28.42)];
    for (set, scale, psnr) in published {
        for input in ["upscaled", "small"] {
            for how in ["luma: true", "metric: {y: true}"] {
                let task = format!(
                    "{{reconstruction: {{degrade: {{super_resolution: {{scale: {scale}, input: {input}}}}}, {how}}}}}"
                );
                let (got, ssim) = bicubic(&data.join("sr").join(set), &task);
                eprintln!("{set} x{scale} {input} {how}: {got:.3} dB, SSIM {ssim:.4}");
                assert!((got - psnr).abs() < 0.05, "{set} x{scale} {how}: {got:.3} dB, published {psnr}");
            }
        }
    }
}

#[test]
fn pairs_are_taken_as_they_are_and_cropped_to_the_scale() {
    let task = decode::<TaskSpec>("{reconstruction: {degrade: none, luma: true}}").build();
    let xs = images(Kind::Float);
    let (seen, wanted) = task.make_batch(&xs * 0.5, xs.shallow_clone(), true).unwrap();
    assert_eq!((seen.size(), wanted.size()), (vec![5, 1, 24, 31], vec![5, 1, 24, 31]));
    // 8-bit levels of BT.601, 16 for black.
    let levels = &wanted * 255.0;
    assert!(f64::try_from((&levels - levels.round()).abs().max()).unwrap() < 1e-4);
    assert!(f64::try_from(seen.min()).unwrap() >= 16.0 / 255.0 - 1e-6);
}

#[test]
fn mistakes_in_a_degradation_are_told_by_key() {
    let folder = tempfile::tempdir().unwrap();
    let config = |task: &str| {
        format!(
            "model: {{name: dncnn, args: {{size: 28, depth: 3, width: 2}}}}\ntask: {{reconstruction: {{{task}}}}}\n\
             data: {{train: {{shapes: {{count: 8, size: 28}}}}, normalize: none}}\noptimizer: adam\ntrain: {{epochs: 1}}\n"
        )
    };
    let cases = [
        (
            "degrade: gaussian, residual: true, loss: {ssim: {alpha: 2}}",
            "reconstruction.loss.ssim.alpha: 2 is not in",
        ),
        ("degrade: {gaussian: {sigma: -1}}", "degrade.gaussian.sigma: -1 is not a number from 0 up"),
        ("degrade: {gaussian: {sigma: [9, 1]}}", "the wrong way round"),
        ("degrade: {gausian: {sigma: 1}}", "did you mean `gaussian`"),
        ("degrade: {gaussian: {sgima: 1}}", "did you mean `sigma`"),
        (
            "degrade: [{blur: {gaussian: {sigma: 1}}}, {jpeg: {quality: 0}}]",
            "degrade.1.jpeg.quality: 0 is not in 1..=100",
        ),
        ("degrade: {super_resolution: {scale: 1}}", "degrade.super_resolution.scale: 1 is not"),
        ("degrade: {super_resolution: {scale: 2, input: small}}, residual: true", "say `input: upscaled`"),
        ("degrade: []", "write `none`"),
        ("degrade: {blur: {gaussian: {sigma: 20}}}", "too wide for 28x28 images"),
        ("degrade: {inpainting: {missing: {mask: nowhere.png}}}", "mask of missing pixels cannot be read"),
        ("degrade: [{gaussian: {map: true}}, poisson]", "degrade.0.gaussian.map: adds a channel"),
    ];
    for (task, message) in cases {
        let path = folder.path().join("c.yaml");
        std::fs::write(&path, config(task)).unwrap();
        let (code, _, stderr) =
            run(&["train", path.to_str().unwrap(), "--output", folder.path().join("run").to_str().unwrap()]);
        assert!([2, 3].contains(&code) && stderr.contains(message), "{task}: {code}\n{stderr}");
    }
}

#[test]
fn a_run_on_degradations_that_draw_resumes_bit_for_bit() {
    let home = tempfile::tempdir().unwrap();
    let config = home.path().join("c.yaml");
    std::fs::write(
        &config,
        "seed: 5\nthreads: 1\nmodel: {name: dncnn, args: {size: 28, depth: 3, width: 4}}
task:
  reconstruction:
    degrade: [{blur: {motion: {length: 5}}}, {gaussian: {sigma: [5, 50]}}, {inpainting: {missing: {boxes: {count: 2, size: [2, 6]}}}}, {jpeg: {quality: [10, 90]}}]
    loss: {ssim: {}}
data: {train: {shapes: {count: 120, size: 28}}, validation: {fraction: 0.2}, batch_size: 8, normalize: none}
optimizer: {adam: {lr: 1.0e-3}}
train: {epochs: 2, log_every: 3, checkpoint: {every_steps: 5}}
",
    )
    .unwrap();
    let config = config.to_str().unwrap();
    let [whole, parts] = ["whole", "parts"].map(|name| home.path().join(name));
    let (code, stdout, stderr) = run(&["train", config, "--output", whole.to_str().unwrap()]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains("psnr_degraded") || stderr.contains("psnr_degraded"), "{stdout}{stderr}");
    // The second half in a process of its own.
    succeeds(&["train", config, "--set", "train.epochs=1", "--output", parts.to_str().unwrap()]);
    succeeds(&["train", config, "--resume", "--output", parts.to_str().unwrap()]);
    assert_eq!(saved(&whole, "model"), saved(&parts, "model"));
}
