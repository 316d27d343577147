//! A trained compressor at work: image files to small files and back.

use std::path::Path;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor, no_grad};

use crate::data::image::photo::Photo;
use crate::data::image::picture::MAX_DECODED;
use crate::data::{ImageFile, Mode};
use crate::inference::codec::{Header, Packed, pack};
use crate::inference::loaded_model::LoadedModel;
use crate::libtorch::{bytes, catch_panics};
use crate::metrics::image::psnr;
use crate::nn::model::Network;
use crate::tasks::{Compression, TaskSpec};
use crate::util::exit_code::{ExitCode, WithExitCode, fail};

pub struct Compressor {
    trained: LoadedModel,
    network: Network,
    mode: Mode,
    identity: [u8; 8],
}

/// A compressed image.
pub struct Compressed {
    pub file: Vec<u8>,
    pub width: usize,
    pub height: usize,
    /// In dB, of the 8-bit image that [`Compressor::decode`] gives.
    pub psnr: f64,
}

impl Compressed {
    /// All of the file, by the pixels of the image.
    pub fn bits_per_pixel(&self) -> f64 {
        8.0 * self.file.len() as f64 / (self.width * self.height) as f64
    }
}

impl Compressor {
    /// Exit 2 where the run is no compression of grey or RGB images.
    pub fn new(trained: LoadedModel, name: &Path) -> Result<Self> {
        let model = &trained.plan.model;
        if !matches!(trained.config.spec.task, TaskSpec::Compression(_)) {
            let message = format!("{} is no compression: it has no code to write or read", name.display());
            return Err(fail(ExitCode::Usage, message));
        }
        Compression::code(model)?;
        let (mode, _) = trained.config.spec.data.picture_rules(model.input())?;
        let network = trained.network()?;
        let identity = identity(&model.structure()?, &network)?;
        Ok(Self { trained, network, mode, identity })
    }

    /// The file of an image, seen as evaluation sees it: 8 bits, in the network's colours, alpha laid on
    /// white. Exit 3 where it cannot be read or the network does not take its size.
    pub fn encode(&self, path: &Path) -> Result<Compressed> {
        let file = ImageFile::new(path, self.mode);
        let picture = file.decode().with_exit_code(ExitCode::Data, || path.display())?;
        let (width, height) = (picture.width, picture.height);
        let shape = self.code_shape(width, height).with_exit_code(ExitCode::Data, || path.display())?;
        let size = [1, picture.channels as i64, height as i64, width as i64];
        let xs = Tensor::f_from_slice(&picture.planes())?.f_view(size)?.f_to_kind(Kind::Float)? / 255.0;
        let code = catch_panics(|| no_grad(|| Compression::encode(&self.network, &self.like_weights(&xs)?)))
            .with_context(|| path.display().to_string())??;
        if !code.isfinite().all().f_int64_value(&[]).is_ok_and(|all| all == 1) {
            return Err(fail(
                ExitCode::Numeric,
                format!("{}: the network's code is not finite", path.display()),
            ));
        }
        let values =
            Vec::<i8>::try_from(code.f_to_device(Device::Cpu)?.f_to_kind(Kind::Int8)?.f_reshape([-1])?)?;
        let header = Header { network: self.identity, width: width as u32, height: height as u32, shape };
        let photo = self.image(&header, &values)?;
        let psnr = psnr(&photo.part(0, 0, height, width)?, &xs).f_double_value(&[0])?;
        Ok(Compressed { file: pack(&header, &values)?, width, height, psnr })
    }

    /// The image of a file. Exit 4 where it is none, damaged, or of another network.
    pub fn decode(&self, file: &[u8]) -> Result<Photo> {
        let packed = Packed::open(file).with_exit_code(ExitCode::Checkpoint, || "cannot be decoded")?;
        let Header { network, width, height, shape } = &packed.header;
        if *network != self.identity {
            let message =
                "was encoded with another network, or with other weights of it; give the run that encoded it";
            return Err(fail(ExitCode::Checkpoint, message));
        }
        let wanted = self
            .code_shape(*width as usize, *height as usize)
            .with_exit_code(ExitCode::Checkpoint, || "is damaged")?;
        if wanted != *shape {
            let message =
                format!("is damaged: {width}x{height} pixels are a code of {wanted:?}, not {shape:?}");
            return Err(fail(ExitCode::Checkpoint, message));
        }
        self.image(&packed.header, &packed.values())
    }

    /// The shape of the code of an image; an error where the network does not take the size.
    fn code_shape(&self, width: usize, height: usize) -> Result<Vec<u32>> {
        let channels = self.mode.channels();
        let bytes = width.checked_mul(height).and_then(|pixels| pixels.checked_mul(channels));
        let bytes = bytes.filter(|bytes| *bytes > 0 && *bytes as u64 <= MAX_DECODED);
        bytes.with_context(|| format!("no image has {width}x{height} pixels"))?;
        let model = &self.trained.plan.model;
        let image = [channels, height, width].map(|side| side as i64);
        let code = model.child_output("encoder", &image);
        let back = code.as_ref().and_then(|code| model.child_output("decoder", code));
        let covers = |back: &Vec<i64>| {
            back.len() == 3 && back[0] == image[0] && back[1] >= image[1] && back[2] >= image[2]
        };
        let code = code.filter(|_| back.as_ref().is_some_and(covers)).with_context(|| {
            format!(
                "the network takes images of {:?}, and this is {image:?}: bring it to that size",
                model.input()
            )
        })?;
        Ok(code.into_iter().map(u32::try_from).collect::<Result<_, _>>()?)
    }

    /// What evaluation judges, in 8 bits.
    fn image(&self, header: &Header, values: &[i8]) -> Result<Photo> {
        let (width, height) = (header.width as usize, header.height as usize);
        let channels = self.mode.channels();
        let code: Vec<i64> = [1].into_iter().chain(header.shape.iter().map(|&side| side.into())).collect();
        let size = [1, channels as i64, height as i64, width as i64];
        let code = Tensor::f_from_slice(values)?.f_view(code.as_slice())?;
        let image = catch_panics(|| {
            no_grad(|| Compression::decode(&self.network, &self.like_weights(&code)?, &size))
        })
        .with_context(|| format!("an image of {width}x{height}"))??;
        let mut photo = Photo::black(width, height, channels);
        photo.put(&image, 0, 0)?;
        Ok(photo)
    }

    fn like_weights(&self, tensor: &Tensor) -> Result<Tensor> {
        Ok(tensor.f_to_device(self.network.device())?.f_to_kind(self.network.kind())?)
    }
}

/// What tells a network and its weights from all others: the beginning of a SHA-256.
fn identity(structure: &str, network: &Network) -> Result<[u8; 8]> {
    let mut hash = Sha256::new_with_prefix(structure);
    for (name, tensor) in network.state() {
        // It counts batches, and does not change an answer.
        if name.ends_with("num_batches_tracked") {
            continue;
        }
        hash.update(format!("{name} {:?} {:?}", tensor.kind(), tensor.size()));
        bytes::with(&tensor.f_detach()?.f_to_device(Device::Cpu)?.f_contiguous()?, |bytes| {
            hash.update(bytes)
        })?;
    }
    Ok(hash.finalize()[..8].try_into()?)
}
