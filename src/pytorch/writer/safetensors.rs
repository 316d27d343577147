//! Writes safetensors files, tensor by tensor: the crate's own writer leaves a file readable by its owner
//! only and forgets the order.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use safetensors::Dtype as Packed;
use safetensors::tensor::{Metadata, TensorInfo};
use tch::{Device, Kind, Tensor};

use crate::libtorch::bytes;
use crate::util::atomic_file;
use crate::util::exit_code::{ExitCode, WithExitCode, fail};
use crate::util::sha256::{Summing, Sums};
use crate::util::threads::both;

/// Writes contiguous copies of `tensors` to `path`, atomically; `format: pt` is added to `metadata`. Any
/// device. The order is kept among tensors of one element size; larger elements come first, which aligns them
/// all.
pub fn write(path: &Path, tensors: &[(String, Tensor)], metadata: &[(String, String)]) -> Result<()> {
    let contents = Contents::of(tensors, metadata)?;
    atomic_file::write(path, |file| contents.pass_to(|bytes| Ok(file.write_all(bytes)?)))
}

/// What a file will hold: the header, and the memory of the tensors on the CPU.
pub struct Contents {
    header: Vec<u8>,
    tensors: Vec<Tensor>,
}

impl Contents {
    /// As [`write()`] lays them out. Contiguous tensors on the CPU are not copied, so nothing may write to
    /// them meanwhile.
    pub fn of(tensors: &[(String, Tensor)], metadata: &[(String, String)]) -> Result<Self> {
        let mut order: Vec<_> = tensors.iter().collect();
        order.sort_by_key(|(_, tensor)| std::cmp::Reverse(tensor.kind().elt_size_in_bytes()));
        let mut infos = Vec::with_capacity(order.len());
        let mut at = 0;
        let mut names = HashSet::new();
        for (name, tensor) in &order {
            if name == "__metadata__" || !names.insert(name) {
                let why = if name == "__metadata__" {
                    "a name that safetensors keeps"
                } else {
                    "the name of two tensors"
                };
                let message = format!("`{name}` is {why}: rename it (`convert --rename`), or write a .pt");
                return Err(fail(ExitCode::Checkpoint, message));
            }
            let dtype = packed(tensor.kind()).with_exit_code(ExitCode::Checkpoint, || {
                format!("`{name}`: safetensors has no dtype for {:?}; write a .pt", tensor.kind())
            })?;
            let end = at + tensor.numel() * tensor.kind().elt_size_in_bytes();
            let shape = tensor.size().iter().map(|&d| d as usize).collect();
            infos.push((name.clone(), TensorInfo { dtype, shape, data_offsets: (at, end) }));
            at = end;
        }
        let mut metadata: HashMap<String, String> = metadata.iter().cloned().collect();
        metadata.insert("format".into(), "pt".into());
        let json = serde_json::to_vec(&Metadata::new(Some(metadata), infos).context("the header")?)?;
        let len = json.len().next_multiple_of(8);
        let mut header = (len as u64).to_le_bytes().to_vec();
        header.extend(json);
        header.resize(8 + len, b' ');
        let flat = |tensor: &Tensor| tensor.detach().f_to_device(Device::Cpu)?.f_contiguous();
        let tensors = order.into_iter().map(|(_, tensor)| flat(tensor)).collect::<Result<_, _>>()?;
        Ok(Self { header, tensors })
    }

    /// The same memory once more, for another thread.
    pub fn share(&self) -> Self {
        Self {
            header: self.header.clone(),
            tensors: self.tensors.iter().map(Tensor::shallow_clone).collect(),
        }
    }

    /// The sums of the file, from memory.
    pub fn sums(&self) -> Result<Sums> {
        let mut summing = Summing::default();
        self.pass_to(|bytes| {
            summing.update(bytes);
            Ok(())
        })?;
        Ok(summing.finish())
    }

    /// Writes a new file and syncs it to the disk; meanwhile it is read back and compared with memory.
    pub fn write_synced(&self, path: &Path) -> Result<()> {
        let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
        self.pass_to(|bytes| Ok(file.write_all(bytes)?))?;
        let file = file.into_inner()?;
        let twin = self.share();
        let (compared, synced) = both(move || twin.reads_back(path), || file.sync_all());
        synced.context("flushing to the disk")?;
        compared
    }

    fn reads_back(&self, path: &Path) -> Result<()> {
        let (mut file, mut buffer) = (File::open(path)?, vec![0; 256 << 10]);
        self.pass_to(|bytes| {
            bytes.chunks(buffer.len()).try_for_each(|wanted| {
                let read = &mut buffer[..wanted.len()];
                file.read_exact(read)?;
                ensure!(read == wanted, "it does not read back as written");
                Ok(())
            })
        })?;
        ensure!(file.read(&mut [0])? == 0, "it is longer than what was written");
        Ok(())
    }

    fn pass_to(&self, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        take(&self.header)?;
        self.tensors.iter().try_for_each(|tensor| bytes::with(tensor, &mut take)?)
    }
}

fn packed(kind: Kind) -> Option<Packed> {
    Some(match kind {
        Kind::Bool => Packed::BOOL,
        Kind::Uint8 => Packed::U8,
        Kind::Int8 => Packed::I8,
        Kind::Int16 => Packed::I16,
        Kind::Int => Packed::I32,
        Kind::Int64 => Packed::I64,
        Kind::Half => Packed::F16,
        Kind::BFloat16 => Packed::BF16,
        Kind::Float => Packed::F32,
        Kind::Double => Packed::F64,
        Kind::ComplexFloat => Packed::C64,
        Kind::Float8e4m3fn => Packed::F8_E4M3,
        Kind::Float8e5m2 => Packed::F8_E5M2,
        Kind::Float8e4m3fnuz => Packed::F8_E4M3FNUZ,
        Kind::Float8e5m2fnuz => Packed::F8_E5M2FNUZ,
        _ => return None,
    })
}
