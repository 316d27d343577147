//! The idx format of MNIST and Fashion-MNIST (yann.lecun.com/exdb/mnist), plain or gzipped.

use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::path::Path;
use std::sync::Mutex;

use anyhow::Result;
use flate2::bufread::MultiGzDecoder;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::{ClassNames, FilePath, OpenOptions, Source, class_count, class_names, positive_limit, resident};
use crate::data::{Dataset, Targets};
use crate::libtorch::bytes;
use crate::util::exit_code::{ExitCode, WithExitCode, fail};
use crate::util::regular_file;
use crate::util::threads::unpoisoned;
use crate::util::yaml::Invalid;

/// `{idx: {images: FILE, labels: FILE}}`: grey pictures `[N, 1, H, W]` with their classes.
#[derive(Deserialize, Serialize, Clone, Debug, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a mapping, such as `{images: images.gz, labels: labels.gz}`")]
pub struct IdxSpec {
    /// The file of the images, also as .gz.
    pub images: FilePath,
    /// The file of the labels, also as .gz.
    pub labels: FilePath,
    /// Class names: a list, or a file with one name per line. Numbers when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<ClassNames>,
    /// Use only the first so many samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub limit: Option<usize>,
}

impl Source for IdxSpec {
    fn validate(&self) -> Result<(), Invalid> {
        self.images.file("images")?;
        self.labels.file("labels")?;
        ClassNames::validate(&self.classes)?;
        positive_limit(self.limit)
    }

    fn outline(&self) -> Option<(Vec<i64>, Option<usize>)> {
        let (images, labels) = (self.images.resolve().ok()?, self.labels.resolve().ok()?);
        // A single picture: the dimensions are those of all.
        let ([_, height, width], _) = read_idx::<3>(&images, Some(1), "pictures [N, H, W]").ok()?;
        let (_, labels) = read_idx::<1>(&labels, self.limit, "labels [N]").ok()?;
        let labels = Vec::<i64>::try_from(labels.to_kind(Kind::Int64)).ok()?;
        let classes = class_names(&self.classes, class_count(&labels)).ok()?;
        Some((vec![1, height as i64, width as i64], Some(classes.len())))
    }

    fn open(&self, _: &OpenOptions) -> Result<Dataset> {
        let (images, labels) = (self.images.resolve()?, self.labels.resolve()?);
        let ([count, height, width], pixels) = read_idx::<3>(&images, self.limit, "pictures [N, H, W]")?;
        let ([named], labels_read) = read_idx::<1>(&labels, self.limit, "labels [N]")?;
        if count != named {
            let (images, labels) = (images.display(), labels.display());
            let message = format!(
                "{images} has {count} pictures, {labels} has {named} labels: they do not belong together"
            );
            return Err(fail(ExitCode::Data, message));
        }
        let labels = Vec::<i64>::try_from(labels_read.f_to_kind(Kind::Int64)?)?;
        let xs = pixels.f_view([labels.len() as i64, 1, height as i64, width as i64])?;
        let classes = class_names(&self.classes, class_count(&labels))?;
        Ok(resident(xs, Targets::Classes(labels), classes))
    }
}

/// The dimensions that the header tells and the bytes of the first `limit` entries, flat.
fn read_idx<const D: usize>(path: &Path, limit: Option<usize>, wanted: &str) -> Result<([usize; D], Tensor)> {
    let name = path.display();
    let damaged = |what: &str| fail(ExitCode::Data, format!("{name}: {what}; fetch the file again"));
    let unreadable = || format!("{name}: cannot be read");
    let file = regular_file::open(path).with_exit_code(ExitCode::Data, unreadable)?;
    let size = file.metadata().with_exit_code(ExitCode::Data, unreadable)?.len();
    let mut file = BufReader::with_capacity(1 << 20, file);
    let zipped = file.fill_buf().with_exit_code(ExitCode::Data, unreadable)?.starts_with(&[0x1f, 0x8b]);
    // Deflate packs at most 1032 to 1, so the file's size bounds what a header may promise.
    let bound = if zipped { size.saturating_mul(1032) } else { size };
    let mut reader: Box<dyn Read + Send> =
        if zipped { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };

    let mut magic = [0; 4];
    reader.read_exact(&mut magic).map_err(|_| damaged("ends within the idx header"))?;
    if magic[..2] != [0, 0] {
        let message = format!(
            "{name}: is not an idx file (it starts with {magic:02x?}); give the ubyte or ubyte.gz file"
        );
        return Err(fail(ExitCode::Data, message));
    }
    if magic[2] != 8 || usize::from(magic[3]) != D {
        let message = format!(
            "{name}: {wanted} of unsigned bytes wanted (type 08, {D} dimensions), the file has type {:02x} and {} dimensions; \
             are images and labels swapped?",
            magic[2], magic[3]
        );
        return Err(fail(ExitCode::Data, message));
    }
    let mut dims = [0; D];
    for dim in &mut dims {
        let mut bytes = [0; 4];
        reader.read_exact(&mut bytes).map_err(|_| damaged("ends within the idx header"))?;
        *dim = u32::from_be_bytes(bytes) as usize;
    }
    let entry: u128 = dims[1..].iter().map(|&dim| dim as u128).product();
    let promised = entry * dims[0] as u128;
    if promised == 0 {
        return Err(fail(ExitCode::Data, format!("{name}: holds no samples (dimensions {dims:?})")));
    }
    let header = 4 + 4 * D as u64;
    if promised + u128::from(header) > u128::from(bound) {
        return Err(damaged(&format!(
            "is truncated: the header promises {promised} bytes, the file has {size}"
        )));
    }
    let taken = limit.map_or(dims[0], |limit| limit.min(dims[0]));
    let bytes = entry as usize * taken;
    // Straight into the tensor: what is read here is most of the start of a run.
    let shared = Mutex::new(&mut reader);
    let data = bytes::filled(&[bytes as u64], |_, memory| {
        let mut reader = unpoisoned(&shared);
        let mut at = 0;
        let cause = loop {
            match reader.read(&mut memory[at..]) {
                Ok(0) if at == memory.len() => return Ok(()),
                Ok(0) => break String::new(),
                Ok(len) => at += len,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => break format!(" ({error})"),
            }
        };
        Err(damaged(&format!("is truncated or damaged after {at} of {promised} bytes{cause}")))
    })?;
    let data = data.into_iter().next().with_exit_code(ExitCode::Data, unreadable)?;
    if taken == dims[0] {
        // Reading to the end also makes gzip compare its checksum.
        let trailing = reader.read(&mut [0]).map_err(|error| damaged(&format!("is damaged ({error})")))?;
        if trailing != 0 {
            return Err(damaged(&format!("has more bytes than the {promised} that its header promises")));
        }
    }
    Ok((dims, data))
}
