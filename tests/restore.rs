//! `tikhonov restore`, driven as a user drives it.

use std::fs;
use std::path::Path;

use serde_json::json;
use tch::{Device, Kind, Tensor};
use tikhonov::data::image::photo::Photo;
use tikhonov::inference::restorer::Restorer;
use tikhonov::nn::model::Model;
use tikhonov::tasks::TaskSpec;
use tikhonov::util::yaml::decode;

use crate::common::{python, run};

/// Writes `net.pt` for each network below, and pictures of every kind into `in/`.
const PLACE: &str = "
import torch, numpy as np, os
from PIL import Image
from torch import nn
os.chdir(PLACE)
torch.manual_seed(0)
def save(name, **layers):
    net = nn.Sequential()
    for key, layer in layers.items(): net.add_module(key, layer)
    torch.save(net.state_dict(), name + '.pt')
save('flat', a=nn.Conv2d(1, 8, 3), b=nn.Conv2d(8, 8, 5), c=nn.Conv2d(8, 1, 3))
save('strided', a=nn.Conv2d(1, 8, 3), b=nn.Conv2d(8, 8, 3), c=nn.ConvTranspose2d(8, 8, 2), d=nn.Conv2d(8, 1, 3))
save('twice', a=nn.Conv2d(3, 12, 3))
os.makedirs('in')
rng = np.random.default_rng(0)
def smooth(h, w, c): return (np.add.outer(np.arange(h) * 3, np.arange(w) * 2)[..., None] + np.arange(c) * 40) % 251
I = Image.fromarray
grey = smooth(70, 90, 1)[..., 0].astype(np.uint8)
rgb = smooth(40, 33, 3).astype(np.uint8)
I(grey).save('in/grey.png'); I(rgb).save('in/rgb.png'); I(rgb).save('photo.jpg', quality=95)
I(np.dstack([rgb, rng.integers(0, 256, (40, 33, 1), dtype=np.uint8)])).save('in/alpha.png')
I((smooth(70, 90, 1)[..., 0] * 257).astype(np.uint16)).save('in/deep.png')
I(rgb).convert('CMYK').save('in/cmyk.jpg')
I(np.full((1, 1), 77, np.uint8)).save('in/point.png')
I(smooth(3, 5000, 1)[..., 0].astype(np.uint8)).save('in/wide.png')
";

const CONFIG: &str = "
device: cpu
threads: 1
model:
  input: [CHANNELS, 32, 32]
  layers: LAYERS
task: {reconstruction: {degrade: DEGRADE, residual: RESIDUAL}}
data: {train: {images: {root: in, mode: grey, patch: 16}}, normalize: none}
optimizer: {sgd: {lr: 0.1}}
train: {epochs: 1}
";

const FLAT: &str = "{a: {conv2d: {out_channels: 8, kernel_size: 3, padding: 1}}, _r: relu, \
                    b: {conv2d: {out_channels: 8, kernel_size: 5, padding: 2}}, _s: relu, \
                    c: {conv2d: {out_channels: 1, kernel_size: 3, padding: 1}}}";
const STRIDED: &str = "{a: {conv2d: {out_channels: 8, kernel_size: 3, padding: 1, stride: 2}}, _r: relu, \
                       b: {conv2d: {out_channels: 8, kernel_size: 3, padding: 1}}, _s: relu, \
                       c: {conv_transpose2d: {out_channels: 8, kernel_size: 2, stride: 2}}, \
                       d: {conv2d: {out_channels: 1, kernel_size: 3, padding: 1}}}";
const TWICE: &str =
    "{a: {conv2d: {out_channels: 12, kernel_size: 3, padding: 1}}, _s: {pixel_shuffle: {upscale_factor: 2}}}";

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        python(&PLACE.replace("PLACE", &format!("{:?}", folder.path())));
        for (name, channels, layers, degrade, residual) in [
            ("flat", 1, FLAT, "gaussian", true),
            ("strided", 1, STRIDED, "gaussian", true),
            ("twice", 3, TWICE, "{super_resolution: {scale: 2, input: small}}", false),
        ] {
            let text = CONFIG
                .replace("CHANNELS", &channels.to_string())
                .replace("LAYERS", layers)
                .replace("DEGRADE", degrade)
                .replace("RESIDUAL", &residual.to_string());
            fs::write(folder.path().join(format!("{name}.yaml")), text).unwrap();
        }
        Self { folder }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn restore(&self, net: &str, input: &str, output: &str, options: &[&str]) -> (i32, String, String) {
        let (config, weights) = (self.path(&format!("{net}.yaml")), self.path(&format!("{net}.pt")));
        let (input, output) = (self.path(input), self.path(output));
        let fixed = ["restore", &config, &input, "-o", &output, "--weights", &weights];
        run(&[&fixed, options].concat())
    }

    fn done(&self, net: &str, input: &str, output: &str, options: &[&str]) -> String {
        let (code, stdout, stderr) = self.restore(net, input, output, options);
        assert_eq!(code, 0, "{stderr}");
        stdout
    }

    fn pixels(&self, name: &str) -> Tensor {
        pixels(Path::new(&self.path(name)))
    }
}

fn pixels(path: &Path) -> Tensor {
    let photo = Photo::read(path).unwrap_or_else(|error| panic!("{}: {error:#}", path.display()));
    photo.part(0, 0, photo.height, photo.width).unwrap()
}

#[test]
fn tiles_leave_no_seam() {
    let place = Place::new();
    for net in ["flat", "strided"] {
        place.done(net, "in/deep.png", &format!("{net}-whole.png"), &["--tile", "4096"]);
        let whole = place.pixels(&format!("{net}-whole.png"));
        assert!(
            !whole.allclose(&place.pixels("in/deep.png"), 0.0, 1e-3, false),
            "the network does something"
        );
        for tile in ["16", "33"] {
            let name = format!("{net}-{tile}.png");
            place.done(net, "in/deep.png", &name, &["--tile", tile]);
            let error = (place.pixels(&name) - &whole).abs().max().double_value(&[]);
            assert!(error < 1e-4, "{net} in tiles of {tile}: {error}");
        }
    }
}

#[test]
fn the_whole_image_is_what_pytorch_makes_of_it_and_the_ensemble_averages_eight() {
    let place = Place::new();
    place.done("flat", "in/deep.png", "out.png", &[]);
    place.done("flat", "in/deep.png", "eight.png", &["--ensemble", "--tile", "32"]);
    python(&format!(
        "
import torch, numpy as np, os
from torch import nn
from PIL import Image
os.chdir({:?})
net = nn.Sequential()
for name, layer in [('a', nn.Conv2d(1, 8, 3, padding=1)), ('r', nn.ReLU()), ('b', nn.Conv2d(8, 8, 5, padding=2)), ('s', nn.ReLU()), ('c', nn.Conv2d(8, 1, 3, padding=1))]:
    net.add_module(name, layer)
net.load_state_dict(torch.load('flat.pt'))
x = torch.from_numpy(np.asarray(Image.open('in/deep.png')).astype(np.float32) / 65535)[None, None]
f = lambda x: x - net(x)
g = lambda k, x: torch.flip(torch.rot90(x, k % 4, (2, 3)), [3]) if k > 3 else torch.rot90(x, k, (2, 3))
h = lambda k, x: torch.rot90(torch.flip(x, [3]) if k > 3 else x, -(k % 4), (2, 3))
with torch.no_grad():
    eight = sum(h(k, f(g(k, x))) for k in range(8)) / 8
    for name, y in [('out.png', f(x)), ('eight.png', eight)]:
        ours = np.asarray(Image.open(name)).astype(np.float32) / 65535
        worst = np.abs(ours - y.clamp(0, 1)[0, 0].numpy()).max()
        assert worst < 2e-5, (name, worst)
",
        place.folder.path()
    ));
}

#[test]
fn depth_alpha_colours_and_every_size_come_through() {
    let place = Place::new();
    let stdout = place.done("flat", "in", "out", &[]);
    assert_eq!(stdout.lines().count(), 7, "{stdout}");
    python(&format!(
        "
import os, numpy as np
from PIL import Image
os.chdir({:?})
forms = {{'grey.png': ('L', (90, 70)), 'rgb.png': ('RGB', (33, 40)), 'alpha.png': ('RGBA', (33, 40)), 'deep.png': ('I;16', (90, 70)),
         'point.png': ('L', (1, 1)), 'wide.png': ('L', (5000, 3)), 'cmyk.png': ('RGB', (33, 40))}}
for name, form in forms.items():
    image = Image.open('out/' + name)
    assert (image.mode, image.size) == form, (name, image.mode, image.size)
alpha = [np.asarray(Image.open(f + '/alpha.png'))[..., 3] for f in ('in', 'out')]
assert (alpha[0] == alpha[1]).all()
rgb, one = (np.asarray(Image.open('out/' + n)) for n in ('rgb.png', 'alpha.png'))
assert (rgb == one[..., :3]).all(), 'the alpha changes nothing else'
",
        place.folder.path()
    ));
    let (code, _, stderr) = place.restore("flat", "in", "out", &[]);
    assert!(code == 2 && stderr.contains("--force"), "{stderr}");
}

#[test]
fn super_resolution_enlarges_and_an_rgb_network_takes_grey() {
    let place = Place::new();
    place.done("twice", "in/alpha.png", "large.png", &["--tile", "16"]);
    place.done("twice", "in/grey.png", "large-grey.png", &[]);
    assert_eq!(place.pixels("large.png").size(), [1, 3, 80, 66]);
    assert_eq!(place.pixels("large-grey.png").size(), [1, 1, 140, 180]);
}

#[test]
fn super_resolution_of_every_size_is_exactly_the_scale_times_as_large() {
    // Neither 3 nor 4 divides most of these; 200x200, 64x57 and 512 were refused once.
    const SIZES: [[usize; 2]; 11] = [
        [1, 1],
        [2, 2],
        [1, 7],
        [48, 48],
        [49, 50],
        [63, 66],
        [64, 57],
        [66, 100],
        [96, 31],
        [200, 200],
        [67, 130],
    ];
    let shipped = |name: &str, args: serde_json::Value| json!({"name": name, "args": args});
    let models = [
        (shipped("espcn", json!({"scale": 2})), 2, "small", 1),
        (shipped("espcn", json!({"scale": 3})), 3, "small", 1),
        (shipped("espcn", json!({"scale": 3, "channels": 3})), 3, "small", 3),
        (shipped("espcn", json!({"scale": 4})), 4, "small", 1),
        (shipped("resunet", json!({"width": 4, "down": 1, "up": 3})), 3, "small", 1),
        (shipped("srcnn", json!({})), 3, "upscaled", 1),
    ];
    for (model, scale, input, channels) in models {
        let spec: tikhonov::nn::model::ModelSpec = serde_json::from_value(model.clone()).unwrap();
        let model_of = Model::from_spec(&spec).unwrap();
        let network = model_of.build(Device::Cpu, Kind::Float).unwrap();
        for luma in [true, false] {
            let task = json!({"reconstruction": {
                "degrade": {"super_resolution": {"scale": scale, "input": input}}, "luma": luma, "loss": "l1"}});
            let Ok(TaskSpec::Reconstruction(task)) = decode(&task) else { panic!("{task}") };
            if luma && channels == 3 {
                continue;
            }
            let mut restorer = Restorer::new(&model_of, &network, &task).unwrap();
            for ([height, width], colours) in SIZES.into_iter().flat_map(|size| [(size, 1), (size, 3)]) {
                let mut photo = Photo::black(width, height, colours);
                let ramp = Tensor::arange((colours * height * width) as i64, (Kind::Float, Device::Cpu));
                let ramp = ramp.remainder(251.0) / 255.0;
                photo.put(&ramp.view([1, colours as i64, height as i64, width as i64]), 0, 0).unwrap();
                let mut answers = Vec::new();
                for (tile, ensemble) in [(4096, false), (32, false), (33, true)] {
                    if ensemble && height * width > 5000 {
                        continue;
                    }
                    restorer.ensemble = ensemble;
                    let told = format!("{model} luma {luma}: {colours}x{height}x{width} in tiles of {tile}");
                    let (large, _) = restorer
                        .restore(&photo, None, tile, |_, _| {})
                        .unwrap_or_else(|error| panic!("{told}: {error:#}"));
                    assert_eq!((large.height, large.width), (height * scale, width * scale), "{told}");
                    answers.push(large.part(0, 0, large.height, large.width).unwrap());
                }
                // Tiles of 8 bits differ by a rounding at most.
                let error = (&answers[0] - &answers[1]).abs().max().double_value(&[]);
                assert!(error < 1.5 / 255.0, "{model} luma {luma}, {height}x{width}: {error}");
            }
        }
    }
}

#[test]
fn what_cannot_be_read_is_told_and_passed_over() {
    let place = Place::new();
    let odd = place.folder.path().join("odd");
    fs::create_dir(&odd).unwrap();
    fs::write(odd.join("text.png"), "not a picture").unwrap();
    let jpeg = fs::read(place.path("photo.jpg")).unwrap();
    fs::write(odd.join("cut.jpg"), &jpeg[..jpeg.len() / 2]).unwrap();
    fs::copy(place.path("in/grey.png"), odd.join("fine.png")).unwrap();
    let (code, stdout, stderr) = place.restore("flat", "odd", "out", &[]);
    assert_eq!(code, 3, "{stderr}");
    assert!(stdout.contains("fine.png") && Path::new(&place.path("out/fine.png")).exists());
    for part in ["text.png: ", "is truncated", "2 of 3 images could not be restored"] {
        assert!(stderr.contains(part), "{part} is missing in {stderr}");
    }
    assert_eq!(stderr.matches("text.png").count(), 1, "named once: {stderr}");
    fs::create_dir(place.path("empty")).unwrap();
    assert_eq!(place.restore("flat", "empty", "out", &[]).0, 3);
    assert_eq!(place.restore("flat", "nowhere", "out", &[]).0, 3);
}

#[test]
fn an_input_is_never_overwritten() {
    let place = Place::new();
    let before = fs::read(place.path("in/grey.png")).unwrap();
    for (input, output) in
        [("in/grey.png", "in/grey.png"), ("in/grey.png", "in"), ("in/../in/grey.png", "in/grey.png")]
    {
        let (code, _, stderr) = place.restore("flat", input, output, &["--force"]);
        assert!(code == 2 && stderr.contains("never overwritten"), "{stderr}");
    }
    let (code, _, stderr) = place.restore("flat", "in", "one.png", &[]);
    assert!(code == 2 && stderr.contains("would both become"), "{stderr}");
    assert_eq!(fs::read(place.path("in/grey.png")).unwrap(), before);
}

#[test]
fn noise_of_a_seed_is_added_and_both_psnr_are_told() {
    let place = Place::new();
    let told = |name: &str| place.done("flat", "in/deep.png", name, &["--add-noise", "25", "--seed", "3"]);
    let (first, again) = (told("a.png"), told("b.png"));
    let numbers = |text: &str| text.split_once("): ").unwrap().1.to_owned();
    assert_eq!(numbers(&first), numbers(&again));
    let before: f64 = numbers(&first).split(' ').next().unwrap().parse().unwrap();
    assert!((before - 20.17).abs() < 0.2, "{first}");
    // The same image twice has noise of its own each time.
    fs::create_dir(place.path("twins")).unwrap();
    for name in ["twins/a.png", "twins/b.png"] {
        fs::copy(place.path("in/deep.png"), place.path(name)).unwrap();
    }
    let told = place.done("flat", "twins", "twins-out", &["--add-noise", "25", "--seed", "3"]);
    let told: Vec<_> = told.lines().filter(|line| line.contains("): ")).map(numbers).collect();
    assert!(told.len() == 2 && told[0] != told[1], "{told:?}");
    let (code, _, stderr) = place.restore("flat", "in/deep.png", "c.png", &["--add-noise=-1"]);
    assert!(code == 2 && stderr.contains("--add-noise"), "{stderr}");
}

#[test]
fn a_photo_keeps_its_levels_through_the_file() {
    let place = Place::new();
    for name in ["in/deep.png", "in/alpha.png"] {
        let photo = Photo::read(Path::new(&place.path(name))).unwrap();
        let mut copy = photo.enlarged(1);
        copy.put(&photo.part(0, 0, photo.height, photo.width).unwrap(), 0, 0).unwrap();
        fs::write(place.path("copy.png"), copy.encode(image::ImageFormat::Png).unwrap()).unwrap();
        let (one, other) = (place.pixels(name), place.pixels("copy.png"));
        assert_eq!((one.kind(), (one - other).abs().max().double_value(&[])), (Kind::Float, 0.0));
    }
}
