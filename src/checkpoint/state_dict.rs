//! Writes a state_dict as `torch.save` does: a zip that `torch.load(weights_only=True)` opens as an OrderedDict.
//!
//! Nothing is buffered but the pickle: each storage goes from the tensor's memory to the file, aligned to 64 bytes.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use tch::{Device, Tensor};

use super::atomic;
use super::python::dtype::Dtype;
use super::weights::dtype;
use crate::libtorch::bytes;

const ALIGNMENT: u64 = 64;
const ROOT: &str = "archive";
const FULL32: u64 = 0xffff_ffff;

/// Writes `tensors` to `path`, atomically. Tensors whose memory overlaps share a storage, with their strides; the others are stored
/// contiguously. Any device; quantized tensors are refused.
pub fn write(path: &Path, tensors: &[(String, Tensor)]) -> Result<()> {
    let plan = Plan::new(tensors)?;
    let pickle = plan.pickle()?;
    atomic::write(path, |file| {
        let mut zip = Zip { out: file, at: 0, directory: Vec::new(), count: 0 };
        zip.entry("data.pkl", &pickle)?;
        zip.entry("byteorder", b"little")?;
        for (index, storage) in plan.storages.iter().enumerate() {
            let cpu = storage.memory()?;
            bytes::with(&cpu, |bytes| zip.entry(&format!("data/{index}"), bytes))??;
        }
        zip.entry("version", b"3\n")?;
        zip.finish()
    })
}

/// Which storages there are and which part of them each tensor is.
struct Plan<'a> {
    storages: Vec<Store>,
    views: Vec<View<'a>>,
}

struct View<'a> {
    name: &'a str,
    storage: usize,
    dtype: Dtype,
    /// In elements.
    offset: i64,
    shape: Vec<i64>,
    strides: Vec<i64>,
}

/// The memory behind one or several tensors.
struct Store {
    tensor: Tensor,
    /// Set where several tensors share it: the elements from the tensor's first on, to be taken as they lie.
    extent: Option<i64>,
    /// Elements.
    len: i64,
}

impl Store {
    fn memory(&self) -> Result<Tensor> {
        let flat = match self.extent {
            Some(len) => self.tensor.f_as_strided([len], [1i64], None)?,
            None => self.tensor.f_contiguous()?,
        };
        Ok(flat.f_to_device(Device::Cpu)?.f_contiguous()?)
    }
}

impl<'a> Plan<'a> {
    fn new(tensors: &'a [(String, Tensor)]) -> Result<Plan<'a>> {
        // Address ranges, by start: overlapping ones belong to one storage, and what lies between their ends does too.
        struct Span {
            index: usize,
            device: Device,
            start: usize,
            end: usize,
        }
        let mut spans = Vec::with_capacity(tensors.len());
        for (index, (name, tensor)) in tensors.iter().enumerate() {
            let size =
                dtype(tensor.kind()).with_context(|| format!("`{name}` is quantized"))?.size() as usize;
            let last: i64 =
                tensor.size().iter().zip(tensor.stride()).map(|(&d, stride)| (d - 1) * stride).sum();
            let start = if tensor.numel() == 0 { 0 } else { tensor.data_ptr() as usize };
            let end = if tensor.numel() == 0 { 0 } else { start + (last as usize + 1) * size };
            spans.push(Span { index, device: tensor.device(), start, end });
        }
        spans.sort_by_key(|span| (device_key(span.device), span.start, std::cmp::Reverse(span.end)));

        let mut groups: Vec<Vec<Span>> = Vec::new();
        let mut reach = 0;
        for span in spans {
            let joins = groups.last().and_then(|group| group.first()).is_some_and(|first| {
                let same = tensors[first.index].1.kind() == tensors[span.index].1.kind();
                same && first.device == span.device && span.start < reach && span.start != 0
            });
            reach = if joins { reach.max(span.end) } else { span.end };
            match groups.last_mut().filter(|_| joins) {
                Some(group) => group.push(span),
                None => groups.push(vec![span]),
            }
        }
        // Storages are numbered in the order of their first tensor, as PyTorch does.
        groups.sort_by_key(|group| group.iter().map(|span| span.index).min());

        let mut storages = Vec::with_capacity(groups.len());
        let mut views: Vec<Option<View>> = tensors.iter().map(|_| None).collect();
        for group in &groups {
            let shared = group.len() > 1;
            let base = &group[0];
            let first = &tensors[base.index].1;
            let kind = dtype(first.kind()).context("a quantized tensor")?;
            let size = kind.size() as usize;
            let end = group.iter().map(|span| span.end).max().unwrap_or(base.end);
            let extent = shared.then_some(((end - base.start) / size) as i64);
            let len = extent.unwrap_or(first.numel() as i64);
            for span in group {
                let tensor = &tensors[span.index].1;
                let shape = tensor.size();
                let strides = if shared { tensor.stride() } else { contiguous(&shape) };
                let offset = ((span.start - base.start) / size) as i64;
                let name = tensors[span.index].0.as_str();
                views[span.index] =
                    Some(View { name, storage: storages.len(), dtype: kind, offset, shape, strides });
            }
            storages.push(Store { tensor: first.detach(), extent, len });
        }
        Ok(Plan { storages, views: views.into_iter().flatten().collect() })
    }

    /// The object, protocol 2: OrderedDict of `_rebuild_tensor_v2` calls.
    fn pickle(&self) -> Result<Vec<u8>> {
        let mut out = b"\x80\x02".to_vec();
        let ordered_dict = b"ccollections\nOrderedDict\n)R";
        out.extend(ordered_dict);
        out.push(b'(');
        for view in &self.views {
            text(&mut out, view.name)?;
            let storage = &self.storages[view.storage];
            // float8 has no typed storage: it is untyped bytes and the dtype stands beside the tensor.
            let (function, class, unit) = match view.dtype.storage_class() {
                Some(class) => ("_rebuild_tensor_v2", format!("torch\n{class}"), 1),
                None => {
                    ("_rebuild_tensor_v3", "torch.storage\nUntypedStorage".into(), view.dtype.size() as i64)
                }
            };
            out.extend(format!("ctorch._utils\n{function}\n((").bytes());
            text(&mut out, "storage")?;
            out.extend(format!("c{class}\n").bytes());
            text(&mut out, &view.storage.to_string())?;
            text(&mut out, "cpu")?;
            integer(&mut out, storage.len * unit);
            out.extend(b"tQ");
            integer(&mut out, view.offset);
            for dims in [&view.shape, &view.strides] {
                out.push(b'(');
                dims.iter().for_each(|&d| integer(&mut out, d));
                out.push(b't');
            }
            out.push(0x89);
            out.extend(ordered_dict);
            if view.dtype.storage_class().is_none() {
                out.extend(format!("ctorch\n{}\n", view.dtype.name()).bytes());
            }
            out.extend(b"tR");
        }
        out.extend(b"u.");
        Ok(out)
    }
}

fn device_key(device: Device) -> (u8, usize) {
    match device {
        Device::Cpu => (0, 0),
        Device::Cuda(index) => (1, index),
        _ => (2, 0),
    }
}

fn contiguous(shape: &[i64]) -> Vec<i64> {
    let mut strides = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i].max(1);
    }
    strides
}

fn text(out: &mut Vec<u8>, text: &str) -> Result<()> {
    out.push(b'X');
    out.extend(u32::try_from(text.len()).context("a name of more than 4 GiB")?.to_le_bytes());
    out.extend(text.bytes());
    Ok(())
}

fn integer(out: &mut Vec<u8>, number: i64) {
    match i32::try_from(number) {
        Ok(small) => {
            out.push(b'J');
            out.extend(small.to_le_bytes());
        }
        Err(_) => {
            out.extend([0x8a, 8]);
            out.extend(number.to_le_bytes());
        }
    }
}

/// A zip archive as it is written: stored entries, zip64 where the numbers need it.
struct Zip<'a, W: Write> {
    out: &'a mut W,
    at: u64,
    directory: Vec<u8>,
    count: u64,
}

impl<W: Write> Zip<'_, W> {
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes)?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn entry(&mut self, name: &str, data: &[u8]) -> Result<()> {
        let name = format!("{ROOT}/{name}");
        let (start, size) = (self.at, data.len() as u64);
        let crc = crc32fast::hash(data);
        let wide = size >= FULL32;
        let small = if wide { FULL32 } else { size } as u32;

        let mut extra = Vec::new();
        if wide {
            extra.extend([1, 0, 16, 0]);
            extra.extend(size.to_le_bytes());
            extra.extend(size.to_le_bytes());
        }
        // Padding in an extra field of its own, "FB" as PyTorch calls it, which has a header of four bytes.
        let data_at = start + 30 + name.len() as u64 + extra.len() as u64 + 4;
        let padding = data_at.next_multiple_of(ALIGNMENT) - data_at;
        extra.extend(b"FB");
        extra.extend((padding as u16).to_le_bytes());
        extra.resize(extra.len() + padding as usize, b'Z');

        // Version needed, UTF-8 flag, stored, 1980-01-01 00:00: the same bytes on every day.
        let version: u16 = if wide { 45 } else { 20 };
        let mut common = Vec::new();
        for field in [version, 0x800, 0, 0, 0x21] {
            common.extend(field.to_le_bytes());
        }
        for field in [crc, small, small] {
            common.extend(field.to_le_bytes());
        }
        common.extend((name.len() as u16).to_le_bytes());

        self.put(b"PK\x03\x04")?;
        self.put(&common)?;
        self.put(&(extra.len() as u16).to_le_bytes())?;
        self.put(name.as_bytes())?;
        self.put(&extra)?;
        self.put(data)?;

        let far = start >= FULL32;
        let mut wide_fields = Vec::new();
        if wide {
            wide_fields.extend(size.to_le_bytes());
            wide_fields.extend(size.to_le_bytes());
        }
        if far {
            wide_fields.extend(start.to_le_bytes());
        }
        let directory = &mut self.directory;
        directory.extend(b"PK\x01\x02\x2d\x00");
        directory.extend(&common);
        let extra_len = if wide_fields.is_empty() { 0 } else { 4 + wide_fields.len() as u16 };
        directory.extend(extra_len.to_le_bytes());
        // No comment, first disk, no attributes.
        directory.extend([0; 10]);
        directory.extend((if far { FULL32 } else { start } as u32).to_le_bytes());
        directory.extend(name.as_bytes());
        if !wide_fields.is_empty() {
            directory.extend([1, 0]);
            directory.extend((wide_fields.len() as u16).to_le_bytes());
            directory.extend(wide_fields);
        }
        self.count += 1;
        Ok(())
    }

    fn finish(mut self) -> Result<()> {
        let (start, size, count) = (self.at, self.directory.len() as u64, self.count);
        let directory = std::mem::take(&mut self.directory);
        self.put(&directory)?;
        let end = self.at;
        if start >= FULL32 || size >= FULL32 || count >= 0xffff {
            self.put(b"PK\x06\x06")?;
            self.put(&44u64.to_le_bytes())?;
            self.put(&[45, 0, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0])?;
            for field in [count, count, size, start] {
                self.put(&field.to_le_bytes())?;
            }
            self.put(b"PK\x06\x07\0\0\0\0")?;
            self.put(&end.to_le_bytes())?;
            self.put(&1u32.to_le_bytes())?;
        }
        let count = count.min(0xffff) as u16;
        self.put(b"PK\x05\x06\0\0\0\0")?;
        self.put(&count.to_le_bytes())?;
        self.put(&count.to_le_bytes())?;
        self.put(&(size.min(FULL32) as u32).to_le_bytes())?;
        self.put(&(start.min(FULL32) as u32).to_le_bytes())?;
        self.put(&[0, 0])?;
        ensure!(self.count == count as u64 || count == 0xffff, "the number of entries overflows");
        Ok(())
    }
}
