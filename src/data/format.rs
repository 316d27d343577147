//! Which files are pictures, by their extension and first bytes, and why some pictures cannot be read.

use std::io::Read;
use std::path::{Path, PathBuf};

use image::ImageError;

use super::Mode;
use super::image::floats::is_array;
use crate::util::regular_file;

/// Extensions of pictures that can be read.
const READ: [&str; 24] = [
    "apng", "bmp", "dds", "dib", "exr", "ff", "gif", "hdr", "ico", "jfif", "jpe", "jpeg", "jpg", "pam",
    "pbm", "pgm", "png", "pnm", "ppm", "qoi", "tga", "tif", "tiff", "webp",
];

/// Extensions of pictures that cannot.
const UNREAD: [&str; 14] =
    ["arw", "avif", "cr2", "cr3", "dng", "heic", "heif", "j2k", "jp2", "jxl", "nef", "psd", "raf", "svg"];

/// Whether a file is meant to be a picture: by its extension, as torchvision has it, or by its first bytes
/// where the extension says nothing.
pub fn is_picture(path: &Path) -> bool {
    is_picture_name(path) || has_known_start(path)
}

/// Whether a file is meant to be a picture, by its extension.
pub fn is_picture_name(path: &Path) -> bool {
    let extension = extension(path);
    READ.contains(&extension.as_str()) || UNREAD.contains(&extension.as_str())
}

fn extension(path: &Path) -> String {
    path.extension().unwrap_or_default().to_string_lossy().to_lowercase()
}

fn has_known_start(path: &Path) -> bool {
    let mut start = Vec::new();
    let read = regular_file::open(path).and_then(|file| file.take(64).read_to_end(&mut start));
    read.is_ok() && image::guess_format(&start).is_ok()
}

/// Why a file whose first bytes are of no format that is read is none.
pub fn unknown(path: &Path, bytes: &[u8]) -> String {
    let convert = |name: &str| format!("is {name}, which is not read; convert it to PNG or JPEG");
    // A box of ISO base media: its length, `ftyp`, its brand.
    match (bytes.get(4..8), bytes.get(8..12)) {
        (Some(b"ftyp"), Some(b"avif" | b"avis")) => return convert("AVIF"),
        (Some(b"ftyp"), Some(b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"mif1" | b"msf1")) => {
            return convert("HEIC");
        }
        _ => {}
    }
    let extension = extension(path);
    match UNREAD.contains(&extension.as_str()) {
        true => convert(&extension.to_uppercase()),
        false => "is not a picture of a known format".into(),
    }
}

/// Why a picture of floating-point numbers is none.
pub const FLOATS: &str =
    "has floating-point pixels: `mode: {float32: 3}`, with its number of channels, takes them as they are";

/// Why a TIFF file that the decoder does not support is none.
pub fn unread_tiff(bytes: &[u8], error: &ImageError) -> String {
    const BITS: usize = 258;
    const FORMAT: usize = 339;
    let bits = tiff_tag(bytes, BITS).map_or_else(String::new, |bits| format!("{bits}-bit "));
    let kind = match tiff_tag(bytes, FORMAT) {
        Some(3) => return FLOATS.into(),
        Some(2) => "signed ",
        _ => "",
    };
    format!(
        "is a TIFF of {bits}{kind}numbers, and 8 and 16 bits without sign are read ({error}): convert it, or save the \
         numbers as .npy, which a source `npy` takes as they are"
    )
}

/// Whether a TIFF file stores the bits of its bytes in reverse (FillOrder 2 in its first directory).
pub fn has_reversed_bits(bytes: &[u8]) -> bool {
    const FILL_ORDER: usize = 266;
    tiff_tag(bytes, FILL_ORDER) == Some(2)
}

/// The first value, a short one, of a tag in the first directory of a TIFF file.
fn tiff_tag(bytes: &[u8], tag: usize) -> Option<usize> {
    let is_little = bytes.starts_with(b"II*\0");
    if !is_little && !bytes.starts_with(b"MM\0*") {
        return None;
    }
    let number = |at: usize, len: usize| -> Option<usize> {
        let bytes = bytes.get(at..at.checked_add(len)?)?;
        let add = |sum: usize, byte: &u8| sum << 8 | usize::from(*byte);
        Some(if is_little { bytes.iter().rev().fold(0, add) } else { bytes.iter().fold(0, add) })
    };
    let directory = number(4, 4)?;
    let mut entries = (0..number(directory, 2)?).map(|entry| directory + 2 + 12 * entry);
    let entry = entries.find(|at| number(*at, 2) == Some(tag))?;
    // More than two of them lie elsewhere.
    let at = if number(entry + 4, 4)? > 2 { number(entry + 8, 4)? } else { entry + 8 };
    number(at, 2)
}

/// The pictures among `files`, and a line on what else there is.
/// Numpy's arrays are pictures where `mode` has floats.
pub fn pictures_of(files: Vec<PathBuf>, mode: Mode) -> (Vec<PathBuf>, Option<String>) {
    let (pictures, others): (Vec<_>, Vec<_>) =
        files.into_iter().partition(|path| is_picture(path) || mode.is_float() && is_array(path));
    let name = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let note = others.first().map(|first| match others.len() {
        1 => format!("passed over {}, which is no picture", first.display()),
        count => {
            let few: Vec<_> = others.iter().take(3).map(name).collect();
            let more = if count > few.len() { ", …" } else { "" };
            format!("passed over {count} files that are no pictures ({}{more})", few.join(", "))
        }
    });
    (pictures, note)
}
