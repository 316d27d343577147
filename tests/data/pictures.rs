//! Picture files and folders of them, against Pillow.

use std::fs;
use std::path::Path;

use serde_json::json;
use tch::{Kind, Tensor};
use tikhonov::data::{EvalTransform, Fit, ImageFile, Interpolation, Mode, Resize, Samples, pictures};
use tikhonov::util::rng::{CounterRng, RngStream};

use super::{at, labels, made_by, mistake, open, python_in, refusal, sums, xs};
use crate::common::data_dir;

fn decode(folder: &Path, name: &str, mode: Mode) -> Tensor {
    let file = ImageFile::new(folder.join(name), mode);
    let picture = file.decode().unwrap_or_else(|error| panic!("{name}: {error:#}"));
    let (height, width) = (picture.height as i64, picture.width as i64);
    Tensor::from_slice(&picture.planes()).view([mode.channels() as i64, height, width])
}

/// Writes one picture in every form that Pillow and tifffile write, and prints per file what Pillow makes of
/// it.
const FORMS: &str = "
from PIL import Image, ImageOps
import tifffile, warnings
warnings.simplefilter('ignore')
rng = np.random.default_rng(6)
yy, xx = np.mgrid[:24, :37]
rgb = np.stack([xx * 6, yy * 9, (xx + yy) * 4], 2).astype(np.uint8)
rgb[4:9, 6:20] = rng.integers(0, 256, (5, 14, 3))
alpha = (xx * 7).astype(np.uint8)
white = lambda v, a: ((v.astype(int) * a + 255 * (255 - a.astype(int)) + 127) // 255).astype(np.uint8)
I = Image.fromarray
files = {}
def save(name, image, expected, **options):
    image.save(name, **options); files[name] = expected
for f in ['png', 'bmp', 'tif', 'ppm', 'tga', 'qoi']: save('rgb.' + f, I(rgb), rgb)
save('lossless.webp', I(rgb), rgb, lossless=True)
grey = np.asarray(I(rgb).convert('L'))
for f in ['png', 'bmp', 'tif', 'pgm', 'gif', 'tga']: save('grey.' + f, I(grey), grey)
rgba = np.dstack([rgb, alpha]); blended = white(rgb, alpha[..., None])
for f in ['png', 'tif', 'tga']: save('alpha.' + f, I(rgba), blended)
save('la.png', I(np.dstack([grey, alpha]), 'LA'), white(grey, alpha))
p = I(rgb).quantize(16); save('palette.png', p, np.asarray(p.convert('RGB'))); save('palette.gif', p, np.asarray(p.convert('RGB')))
save('palette.bmp', p, np.asarray(p.convert('RGB')))
b = I(grey).convert('1'); save('bits.png', b, np.asarray(b.convert('L'))); save('bits.pbm', b, np.asarray(b.convert('L')))
t = I((grey // 100).astype(np.uint8), 'P'); t.putpalette([200, 0, 0, 0, 150, 0, 0, 0, 90])
e = np.asarray(t.convert('RGB')).copy(); e[np.asarray(t) == 1] = 255; save('transparent.png', t, e, transparency=1)
g16 = (xx * 1700 + yy * 90).astype(np.uint16); save('deep.png', I(g16), ((g16.astype(int) + 128) // 257).astype(np.uint8))
r16 = rgb.astype(np.uint16) * 250 + 77; tifffile.imwrite('deep.tif', r16, photometric='rgb'); files['deep.tif'] = ((r16.astype(int) + 128) // 257).astype(np.uint8)
save('wrong.jpg', I(rgb), rgb, format='png'); save('none', I(rgb), rgb, format='bmp')
for o in range(1, 9):
    x = Image.Exif(); x[0x0112] = o
    for f in ['png', 'tif']: 
        I(rgb).save(f'turned{o}.{f}', exif=x); files[f'turned{o}.{f}'] = np.asarray(ImageOps.exif_transpose(Image.open(f'turned{o}.{f}')))
for name, a in files.items():
    if a.ndim == 2: a = np.repeat(a[..., None], 3, 2)
    print(name); print(sums(a.transpose(2, 0, 1))); print(sums(np.asarray(I(a).convert('L'))[None]))
";

#[test]
fn every_form_of_picture_decodes_to_the_pixels_that_pillow_sees() {
    let (folder, expected) = made_by(FORMS);
    let lines: Vec<&str> = expected.lines().collect();
    assert!(lines.len() > 3 * 40);
    for form in lines.chunks(3) {
        assert_eq!(sums(&decode(folder.path(), form[0], Mode::Rgb)), form[1], "{} as RGB", form[0]);
        assert_eq!(sums(&decode(folder.path(), form[0], Mode::Grey)), form[2], "{} as grey", form[0]);
    }
    // Without EXIF the pixels are those that are stored.
    let stored = ImageFile::new(folder.path().join("rgb.png"), Mode::Rgb).decode().unwrap();
    for turn in 1..=8 {
        for format in ["png", "tif"] {
            let path = folder.path().join(format!("turned{turn}.{format}"));
            let file = ImageFile { exif: false, ..ImageFile::new(&path, Mode::Rgb) };
            assert!(file.decode().unwrap() == stored, "{}", path.display());
        }
    }
}

#[test]
fn pictures_of_sixteen_bits_are_told_and_those_of_floats_or_more_bits_refused_by_name() {
    let (folder, _) = made_by(
        "
import os, tifffile
from PIL import Image
a = (np.arange(24 * 37).reshape(24, 37) * 70).astype(np.uint16)
os.makedirs('deep/a'); os.makedirs('deep/b')
for i in range(3): Image.fromarray(a).save(f'deep/a/{i}.png'); Image.fromarray((a >> 8).astype(np.uint8)).save(f'deep/b/{i}.png')
f = (a / 65535).astype(np.float32)
tifffile.imwrite('grey.tif', f); tifffile.imwrite('rgb.tif', np.dstack([f, f, f]), photometric='rgb')
tifffile.imwrite('double.tif', f.astype(np.float64)); tifffile.imwrite('int.tif', a.astype(np.int32))
tifffile.imwrite('uint.tif', a.astype(np.uint32)); tifffile.imwrite('signed.tif', (a >> 1).astype(np.int16))
open('radiance.hdr', 'wb').write(b'#?RADIANCE\\nFORMAT=32-bit_rle_rgbe\\n\\n-Y 2 +X 2\\n' + bytes([128, 64, 32, 130]) * 4)
",
    );
    let folder = folder.path();
    let set = open(json!({"train": {"folder": {"root": at(folder, "deep"), "size": 8}}})).train;
    let notes = set.notes.join("\n");
    assert!(
        notes.contains("3 of 6 pictures have 16 bits per channel, which become 8 (such as a/0.png)"),
        "{notes}"
    );
    let images = open(json!({"train": {"images": {"root": at(folder, "deep"), "patch": 8}}})).train;
    assert!(images.notes.join("\n").contains("3 of 6 pictures have 16 bits"), "{:?}", images.notes);
    let refused = |name: &str| {
        let file = ImageFile::new(folder.join(name), Mode::Grey);
        let (decoded, probed) = (file.decode().map(|_| ()).unwrap_err(), file.probe().unwrap_err());
        assert_eq!(format!("{decoded:#}"), format!("{probed:#}"), "{name}: its header tells it");
        format!("{decoded:#}")
    };
    for name in ["grey.tif", "rgb.tif", "double.tif", "radiance.hdr"] {
        let message = refused(name);
        assert!(
            message.contains("floating-point pixels") && message.contains("mode: {float32"),
            "{name}: {message}"
        );
    }
    for (name, what) in
        [("int.tif", "32-bit signed"), ("uint.tif", "32-bit"), ("signed.tif", "16-bit signed")]
    {
        let message = refused(name);
        assert!(
            message.contains(&format!("a TIFF of {what} numbers")) && message.contains(".npy"),
            "{name}: {message}"
        );
    }
}

/// Baseline 4:2:0 and progressive 4:2:2, with the CRC-32 of the pixels that Pillow makes of them.
#[test]
fn two_jpeg_files_have_the_pixels_that_pillow_saw() {
    let folder = tempfile::tempdir().unwrap();
    let files: [(&[u8], u32); 2] =
        [(include_bytes!("420.jpg"), 3445089998), (include_bytes!("422-progressive.jpg"), 3204779656)];
    for (bytes, expected) in files {
        let file = ImageFile::new(folder.path().join("x.jpg"), Mode::Rgb);
        fs::write(&file.path, bytes).unwrap();
        let picture = file.decode().unwrap();
        assert_eq!((picture.height, picture.width), (21, 19));
        assert_eq!(crc32fast::hash(&picture.data), expected);
    }
}

/// JPEG files as cameras and programs write them, then those of which no part is decoded by itself; beside each
/// what Pillow makes of it.
const JPEGS: &str = "
from PIL import Image, ImageOps
import glob
rng = np.random.default_rng(3)
def picture(height, width):
    yy, xx = np.mgrid[:height, :width]
    rgb = np.stack([xx * 3 + yy, yy * 5, (xx - yy) * 2], 2).astype(np.uint8)
    rgb[height // 4:height // 2] = rng.integers(0, 256, (height // 2 - height // 4, width, 3))
    return Image.fromarray(rgb)
for height, width in [(1, 1), (3, 4), (9, 5), (17, 16), (64, 64), (65, 97), (131, 70), (72, 335), (199, 129)]:
    for s in ['4:4:4', '4:2:2', '4:2:0', '4:4:0']:
        for quality, options in [(30, {}), (95, {'optimize': True}), (75, {'restart_marker_blocks': 3}), (60, {'progressive': True})]:
            name = f'{height}-{width}-{s[2:]}-{quality}.jpg'.replace(':', '')
            try: picture(height, width).save(name, quality=quality, subsampling=s, **options)
            except (TypeError, ValueError): continue
            print('part', name)
exif = Image.Exif(); exif[0x0112] = 1; picture(100, 90).save('upright.jpg', exif=exif); print('part upright.jpg')
for o in range(2, 9):
    exif[0x0112] = o; picture(100, 90).save(f'turned{o}.jpg', exif=exif); print(f'whole turned{o}.jpg')
picture(100, 90).save('progressive.jpg', progressive=True); print('part progressive.jpg')
picture(100, 90).convert('L').save('grey.jpg'); print('whole grey.jpg')
picture(65, 91).convert('L').save('grey-progressive.jpg', progressive=True); print('whole grey-progressive.jpg')
picture(100, 90).save('rgb.jpg', keep_rgb=True); print('part rgb.jpg')
picture(100, 90).convert('CMYK').save('cmyk.jpg'); print('whole cmyk.jpg')
picture(100, 90).save('png.jpg', format='png'); print('whole png.jpg')
for f in glob.glob('*.jpg'):
    pixels = np.asarray(ImageOps.exif_transpose(Image.open(f)).convert('RGB'))
    np.save(f + '.npy', np.ascontiguousarray(pixels.transpose(2, 0, 1)))
";

#[test]
fn a_jpeg_file_has_the_pixels_that_pillow_sees_to_the_bit() {
    let (folder, listed) = made_by(JPEGS);
    let names = listed.lines().filter_map(|line| Some(line.split_once(' ')?.1));
    let names: Vec<&str> = names.filter(|name| *name != "cmyk.jpg").collect();
    assert!(names.len() > 100);
    for name in names {
        let theirs = Tensor::read_npy(folder.path().join(format!("{name}.npy"))).expect("Pillow's pixels");
        assert_eq!(decode(folder.path(), name, Mode::Rgb), theirs, "{name}");
    }
}

#[test]
fn a_part_of_a_jpeg_has_the_bits_that_it_has_in_the_whole() {
    let (folder, listed) = made_by(JPEGS);
    let listed: Vec<_> = listed.lines().map(|line| line.split_once(' ').unwrap()).collect();
    assert!(listed.iter().filter(|(kind, _)| *kind == "part").count() > 40);
    for (number, &(kind, name)) in listed.iter().enumerate() {
        let file = ImageFile::new(folder.path().join(name), Mode::Rgb);
        let whole = file.decode().unwrap();
        for draw in 0..40 {
            let mut random = CounterRng::new(5, number as u64, draw, RngStream::Augment);
            let mut part = |side: usize| {
                let len = if draw == 0 { side } else { 1 + random.below(side as u64) as usize };
                (random.below((side - len) as u64 + 1) as usize, len)
            };
            let ((top, height), (left, width)) = (part(whole.height), part(whole.width));
            let got = file.decode_part(|sides| {
                assert_eq!(sides, [whole.height, whole.width], "{name}");
                Some([top, left, height, width])
            });
            let wanted = (kind == "part").then(|| whole.crop(top, left, height, width));
            assert!(got == wanted, "{name}: {height}x{width} at {top}, {left}");
        }
    }
}

#[test]
fn a_part_of_a_damaged_jpeg_is_left_to_the_full_decoder_or_has_the_size_asked_for() {
    let (folder, _) = made_by("
from PIL import Image
Image.fromarray(np.random.default_rng(1).integers(0, 256, (90, 120, 3), np.uint8)).save('noise.jpg', quality=60)
");
    let intact = fs::read(folder.path().join("noise.jpg")).unwrap();
    let file = ImageFile::new(folder.path().join("damaged.jpg"), Mode::Rgb);
    let (mut declined, mut decoded) = (0, 0);
    for number in 0..2000 {
        let mut random = CounterRng::new(6, 0, number, RngStream::Augment);
        let mut bytes = intact.clone();
        for _ in 0..=random.below(3) {
            let at = random.below(bytes.len() as u64) as usize;
            bytes[at] = random.below(256) as u8;
        }
        if number % 5 == 0 {
            bytes.truncate(random.below(intact.len() as u64) as usize);
            bytes.extend([0xff, 0xd9]);
        }
        fs::write(&file.path, &bytes).unwrap();
        match file.decode_part(|[height, width]| Some([0, 0, height, width.min(77)])) {
            Some(part) => {
                assert_eq!(part.data.len(), part.height * part.width * 3);
                decoded += 1;
            }
            None => declined += 1,
        }
    }
    assert!(declined > 500 && decoded > 300, "{declined} declined, {decoded} decoded");
}

#[test]
fn cmyk_jpegs_and_lossy_webps_decode_close_to_pillow() {
    let (folder, _) = made_by(
        "
from PIL import Image
yy, xx = np.mgrid[:48, :70]
rgb = np.stack([xx * 3, yy * 5, (xx + yy) * 2], 2).astype(np.uint8); im = Image.fromarray(rgb)
im.convert('CMYK').save('cmyk.jpg'); im.save('lossy.webp', quality=90)
for f in ['cmyk.jpg', 'lossy.webp']:
    a = np.asarray(Image.open(f).convert('RGB'))
    np.save(f + '.npy', np.ascontiguousarray(a.transpose(2, 0, 1)))
",
    );
    for name in ["cmyk.jpg", "lossy.webp"] {
        let ours = decode(folder.path(), name, Mode::Rgb);
        let theirs = Tensor::read_npy(folder.path().join(format!("{name}.npy"))).expect("Pillow's pixels");
        assert_eq!(ours.size(), theirs.size(), "{name}");
        let difference = (ours.to_kind(Kind::Float) - theirs.to_kind(Kind::Float)).abs();
        let (mean, most) =
            (difference.mean(Kind::Float).double_value(&[]), difference.max().double_value(&[]));
        // Decoders may differ in rounding and in how they upsample chroma.
        assert!(mean < 1.0 && most <= 12.0, "{name}: mean {mean}, most {most}");
    }
}

#[test]
fn pictures_are_resized_as_pillow_resizes_them() {
    let (folder, expected) = made_by(
        "
from PIL import Image
rng = np.random.default_rng(7)
a = rng.integers(0, 256, (61, 90, 3), dtype=np.uint8); Image.fromarray(a).save('a.png')
for h, w in [(20, 30), (64, 64), (61, 45), (130, 200)]:
    np.save(f'{h}', np.asarray(Image.open('a.png').resize((w, h), Image.BILINEAR)).transpose(2, 0, 1))
# torchvision's Resize(32) and CenterCrop(32): the longer side is cut to whole pixels, the corner rounds half to even.
im = Image.open('a.png').resize((int(32 * 90 / 61), 32), Image.BILINEAR)
left = int(round((im.width - 32) / 2.0)); print(im.width, left)
np.save('crop', np.asarray(im.crop((left, 0, left + 32, 32))).transpose(2, 0, 1))
",
    );
    assert_eq!(expected, "47 8\n");
    let picture = ImageFile::new(folder.path().join("a.png"), Mode::Rgb).decode().expect("a picture");
    let fit = |height, width, resize| Fit { height, width, resize, smooth: None, eval: None };
    let cases = [(20, 30, "20"), (64, 64, "64"), (61, 45, "61"), (130, 200, "130")]
        .map(|(h, w, name)| (h, w, Resize::Squash, name));
    for (height, width, resize, name) in cases.into_iter().chain([(32, 32, Resize::Crop, "crop")]) {
        let ours = fit(height, width, resize).whole(&picture).planes();
        let theirs = Tensor::read_npy(folder.path().join(format!("{name}.npy"))).expect("Pillow's pixels");
        let ours = Tensor::from_slice(&ours).view(theirs.size().as_slice());
        let most = (ours.to_kind(Kind::Int) - theirs.to_kind(Kind::Int)).abs().max().int64_value(&[]);
        assert!(most <= 1, "{name}: {most} levels apart");
    }
    // A region is its own picture.
    let region = fit(16, 16, Resize::Squash).region(&picture, 10, 20, 30, 40);
    assert_eq!(region, picture.crop(10, 20, 30, 40).resize(16, 16));
}

#[test]
fn pictures_to_judge_by_are_resized_and_cropped_as_torchvisions_v2_transforms_do() {
    let (folder, _) = made_by(
        "
from PIL import Image
from torchvision.transforms import InterpolationMode as I, v2
rng = np.random.default_rng(5)
for w, h in [(90, 61), (45, 77), (64, 64), (41, 40), (400, 133)]:
    small = Image.fromarray(rng.integers(0, 256, (h // 3, w // 3, 3), dtype=np.uint8))
    im = small.resize((w, h), Image.BICUBIC); im.save(f'{w}.png')
    for name, how in [('bilinear', I.BILINEAR), ('bicubic', I.BICUBIC)]:
        seen = v2.Compose([v2.Resize(40, interpolation=how, antialias=True), v2.CenterCrop(32)])(im)
        np.save(f'{w}-{name}', np.asarray(seen).transpose(2, 0, 1))
",
    );
    for width in [90, 45, 64, 41, 400] {
        let file = ImageFile::new(folder.path().join(format!("{width}.png")), Mode::Rgb);
        let picture = file.decode().expect("a picture");
        for (name, interpolation) in
            [("bilinear", Interpolation::Bilinear), ("bicubic", Interpolation::Bicubic)]
        {
            let eval = Some(EvalTransform { resize: 40, center_crop: None, interpolation });
            let fit = Fit { height: 32, width: 32, resize: Resize::Squash, smooth: None, eval };
            let ours = Tensor::from_slice(&fit.judging().whole(&picture).planes()).view([3, 32, 32]);
            let theirs = folder.path().join(format!("{width}-{name}.npy"));
            let theirs = Tensor::read_npy(theirs).expect("torchvision's pixels");
            let most = (ours.to_kind(Kind::Int) - theirs.to_kind(Kind::Int)).abs().max().int64_value(&[]);
            assert_eq!(most, 0, "{width} {name}: {most} levels apart");
            assert_eq!(fit.whole(&picture), picture.resize(32, 32), "training is as the source says");
        }
    }
}

#[test]
fn truncated_damaged_and_monstrous_pictures_are_refused_with_a_reason() {
    let (folder, _) = made_by(
        "
from PIL import Image
import struct, zlib
a = np.random.default_rng(8).integers(0, 256, (40, 50, 3), dtype=np.uint8); im = Image.fromarray(a)
t = Image.fromarray(a[:8, :8]); x = Image.Exif()
im.save('a.jpg'); im.save('b.jpg', progressive=True); im.save('c.png'); im.save('d.gif'); im.save('e.bmp'); im.save('f.webp'); im.save('g.tif')
chunk = lambda n, d: struct.pack('>I', len(d)) + n + d + struct.pack('>I', zlib.crc32(n + d))
open('bomb.png', 'wb').write(b'\\x89PNG\\r\\n\\x1a\\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', 60000, 60000, 8, 2, 0, 0, 0)) + chunk(b'IDAT', zlib.compress(bytes(10 ** 6))) + chunk(b'IEND', b''))
open('text.png', 'w').write('not a picture'); open('void.png', 'w')
",
    );
    let refused = |name: &str| ImageFile::new(folder.path().join(name), Mode::Rgb).decode().map(|_| ());
    for name in ["a.jpg", "b.jpg", "c.png", "d.gif", "e.bmp", "f.webp", "g.tif"] {
        assert!(refused(name).is_ok(), "{name} is whole");
        let bytes = fs::read(folder.path().join(name)).expect("the file");
        for share in [0.0, 0.01, 0.1, 0.5, 0.9] {
            let cut = (bytes.len() as f64 * share) as usize;
            fs::write(folder.path().join("cut"), &bytes[..cut]).expect("written");
            assert!(refused("cut").is_err(), "{name} cut to {cut} of {} bytes", bytes.len());
        }
    }
    // Whatever damage does to a file, it is decoded or refused; no decoder may take the program down.
    let mut draw = CounterRng::new(0, 0, 0, RngStream::Generate);
    for name in ["a.jpg", "b.jpg", "c.png", "d.gif", "e.bmp", "f.webp", "g.tif"] {
        let whole = fs::read(folder.path().join(name)).expect("the file");
        for _ in 0..100 {
            let mut bytes = whole.clone();
            for _ in 0..=draw.below(8) {
                // Headers matter most.
                let reach = if draw.below(2) == 0 { bytes.len().min(64) } else { bytes.len() };
                bytes[draw.below(reach as u64) as usize] = draw.bits() as u8;
            }
            fs::write(folder.path().join("damaged"), &bytes).expect("written");
            if let Ok(picture) = (ImageFile::new(folder.path().join("damaged"), Mode::Rgb)).decode() {
                assert_eq!(picture.data.len(), picture.height * picture.width * 3);
            }
        }
    }
    let mut png = fs::read(folder.path().join("c.png")).expect("the file");
    let middle = png.len() / 2;
    png[middle] ^= 1;
    fs::write(folder.path().join("flipped.png"), png).expect("written");
    assert!(refused("flipped.png").is_err());
    let told = |name: &str| format!("{:#}", refused(name).expect_err("refused"));
    assert!(
        told("bomb.png").contains("imit") || told("bomb.png").contains("too large"),
        "{}",
        told("bomb.png")
    );
    assert!(told("text.png").contains("not a picture of a known format"));
    assert!(told("void.png").contains("empty"));
}

/// Two classes, one nested, with litter, one damaged file of eleven, and a file beside the classes.
const TREE: &str = "
from PIL import Image
import os
rng = np.random.default_rng(9)
def save(path):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (12, 10, 3), dtype=np.uint8)).save(path)
for i in [3, 1, 2, 10]: save(f'set/b ant/{i}.png')
for i in range(4): save(f'set/a bee/sub/{i}.png')
for i in range(2): save(f'set/a bee/{i}.png')
open('set/readme.txt', 'w').write('hello'); open('set/a bee/.DS_Store', 'w').write('x'); open('set/b ant/Thumbs.db', 'w').write('x')
open('set/b ant/4.png', 'wb').write(open('set/b ant/3.png', 'rb').read()[:200])
os.makedirs('set/.hidden'); os.symlink('..', 'set/a bee/loop')
";

#[test]
fn a_folder_has_sorted_classes_and_skips_what_is_damaged_within_the_budget() {
    let (folder, _) = made_by(TREE);
    let tree = |options: serde_json::Value| {
        let mut data = json!({"train": {"folder": {"root": at(&folder, "set"), "size": [12, 10]}}});
        options.as_object().expect("options").iter().for_each(|(key, value)| data[key] = value.clone());
        data
    };
    let resident = open(tree(json!({}))).train;
    assert_eq!(resident.classes, ["a bee", "b ant"]);
    assert_eq!(labels(&resident), [0, 0, 0, 0, 0, 0, 1, 1, 1, 1]);
    let names: Vec<&str> = resident.names.iter().map(String::as_str).collect();
    assert_eq!(names[..3], ["a bee/0.png", "a bee/1.png", "a bee/sub/0.png"]);
    assert_eq!(names[6..], ["b ant/1.png", "b ant/10.png", "b ant/2.png", "b ant/3.png"]);
    assert_eq!(resident.skipped.len(), 1);
    assert_eq!(resident.skipped[0].name, "b ant/4.png");
    let expected = python_in(
        &folder.path().join("set"),
        "
from PIL import Image
names = ['a bee/0', 'a bee/1'] + [f'a bee/sub/{i}' for i in range(4)] + ['b ant/1', 'b ant/10', 'b ant/2', 'b ant/3']
print(sums(np.stack([np.asarray(Image.open(n + '.png')).transpose(2, 0, 1) for n in names])))
",
    );
    assert_eq!(sums(xs(&resident)) + "\n", expected);

    let told = refusal(tree(json!({"max_skipped": 0})));
    assert!(
        told.contains("1 of 11 files cannot be decoded, 0 may be skipped") && told.contains("4.png:"),
        "{told}"
    );
    assert!(
        mistake(json!({"train": {"folder": {"root": at(&folder, "none"), "size": 8}}}))
            .contains("train.folder.root")
    );
    fs::create_dir(folder.path().join("set/c")).expect("made");
    assert!(refusal(tree(json!({}))).contains("holds no file"));
}

#[test]
fn a_folder_beyond_the_memory_stays_files_with_the_same_samples() {
    let (folder, _) = made_by(TREE);
    let tree = |memory: f64| {
        let source =
            json!({"folder": {"root": at(&folder, "set"), "size": 8, "mode": "grey", "resize": "crop"}});
        json!({"train": source, "memory_gib": memory, "max_skipped": 0.3, "smooth": {"gaussian": {"sigma": 0.7}}})
    };
    let (resident, streamed) = (open(tree(2.0)).train, open(tree(0.0)).train);
    let Samples::Files(files) = &streamed.samples else { panic!("files") };
    assert_eq!(files.forgiven, 3);
    assert_eq!(streamed.shape, [1, 8, 8]);
    // Headers are read at opening; the damaged body shows when it is decoded.
    assert_eq!((files.files.len(), streamed.names.len(), labels(&streamed).len()), (11, 11, 11));
    let decoded: Vec<Vec<u8>> = files
        .files
        .iter()
        .filter_map(|file| file.decode().ok())
        .map(|picture| files.fit().unwrap().whole(&picture).planes())
        .collect();
    assert_eq!(decoded.concat(), super::bytes(xs(&resident)));
    assert_ne!(streamed.fingerprint, resident.fingerprint);
    assert_eq!(open(tree(0.0)).train.fingerprint, streamed.fingerprint);
}

#[test]
fn folds_of_a_folder_keep_the_files_together_whose_names_share_a_group() {
    let (folder, _) = made_by(
        "
import os
from PIL import Image
for c in 'ab':
    os.makedirs(f'set/{c}')
    for patient in range(6):
        for shot in range(1 + patient % 3): Image.new('L', (4, 4)).save(f'set/{c}/p{patient}-{shot}.png')
",
    );
    let section = |index: usize, group: &str| {
        let source = json!({"root": at(&folder, "set"), "size": 4, "mode": "grey"});
        let fold = json!({"of": 3, "index": index, "group": group});
        json!({"train": {"folder": source}, "validation": {"fold": fold}})
    };
    let mut met = Vec::new();
    for index in 0..3 {
        let sets = open(section(index, "/(p[0-9]+)-"));
        let patient = |name: &String| name[2..4].to_owned();
        let judged: Vec<_> = sets.validation.unwrap().names.iter().map(patient).collect();
        assert!(sets.train.names.iter().all(|name| !judged.contains(&patient(name))));
        met.extend(judged);
    }
    assert_eq!(met.len(), 24, "every file is judged once");
    for (group, part) in [("x", "finds no group in a/p0-0.png"), ("(", "data.validation.fold.group")] {
        let error = super::spec(section(0, group)).open(0).err().unwrap();
        assert!(format!("{error:#}").contains(part), "{error:#}");
    }
}

#[test]
fn pictures_for_prediction_are_files_and_folders_and_the_unreadable_are_listed() {
    let (folder, _) = made_by(TREE);
    let fit = Fit { height: 6, width: 5, resize: Resize::Squash, smooth: None, eval: None };
    let paths = [
        folder.path().join("set/b ant"),
        folder.path().join("set/a bee/0.png"),
        folder.path().join("set/readme.txt"),
    ];
    let set = pictures(&paths, Mode::Rgb, &fit, true).expect("opens");
    assert_eq!(xs(&set).size(), [5, 3, 6, 5]);
    assert_eq!((set.names.len(), set.skipped.len()), (5, 2));
    assert!(set.names[4].ends_with("a bee/0.png"));
    let error = pictures(&paths[2..], Mode::Rgb, &fit, true).err().expect("refused");
    assert_eq!(tikhonov::util::exit_code::code(&error), 3);
}

#[test]
fn the_real_flowers_decode_close_to_pillow() {
    let Some(data) = data_dir("the_real_flowers_decode_close_to_pillow") else { return };
    let root = data.join("photos/flowers/test");
    let set = open(json!({"train": {"folder": {"root": root, "size": 64}}})).train;
    assert_eq!((set.len(), set.classes.len(), set.skipped.len()), (100, 5, 0));
    let expected = python_in(
        &root,
        "
from PIL import Image
import os
means = []
for c in sorted(os.listdir('.')):
    for f in sorted(os.listdir(c)):
        a = np.asarray(Image.open(os.path.join(c, f)).convert('RGB').resize((64, 64), Image.BILINEAR), np.float64)
        means += [a[:32].mean(), a[32:].mean()]
print(*means)
",
    );
    let images = xs(&set).to_kind(Kind::Double);
    let halves = Tensor::stack(&[images.narrow(2, 0, 32), images.narrow(2, 32, 32)], 1).mean_dim(
        [2, 3, 4].as_slice(),
        false,
        Kind::Double,
    );
    let expected: Vec<f64> =
        expected.split_whitespace().map(|mean| mean.parse().expect("a number")).collect();
    let most = (halves.view([-1]) - Tensor::from_slice(&expected)).abs().max().double_value(&[]);
    // The mean of 2048 × 3 levels that resizing may round otherwise.
    assert!(most < 0.05, "means differ by {most}");
}
