//! The reader of Python's files, taken in by path so that libtorch is not linked, and what a program does with a file.

#[allow(dead_code, unused_imports)]
#[path = "../../src/pytorch/reader/mod.rs"]
pub mod python;

use python::source::Source;

/// Everything that reading weights does, into plain memory instead of tensors.
pub fn exercise(bytes: Vec<u8>) {
    let size = bytes.len() as u64;
    if let Ok(python::Container::Safetensors) = python::detect(&Source::Bytes(bytes.clone())) {
        if let Ok(header) = python::safetensors::header(&Source::Bytes(bytes)) {
            assert!(header.items.iter().all(|item| item.start + item.bytes <= size));
        }
        return;
    }
    if let Ok(python::Container::Onnx) = python::detect(&Source::Bytes(bytes.clone())) {
        if let Ok(model) = python::onnx::read(&Source::Bytes(bytes)) {
            assert!(model.items.iter().all(|item| item.start + item.bytes <= size));
        }
        return;
    }
    let Ok(file) = python::read_source(Source::Bytes(bytes)) else { return };
    let Ok(found) = file.find(None) else { return };
    let mut total = 0;
    let mut seen = std::collections::BTreeSet::new();
    for (_, tensor) in &found.tensors {
        let Ok(len) = file.check_storage(tensor.storage) else { return };
        // An empty tensor's strides mean nothing and may be any numbers.
        if tensor.numel() > 0 {
            let last: i64 = tensor.shape.iter().zip(&tensor.strides).map(|(d, s)| (d - 1) * s).sum();
            let end = (tensor.offset + last as u64 + 1) * tensor.dtype.size();
            assert!(end <= len, "a view outside its storage");
        }
        if seen.insert(tensor.storage) {
            total += len;
            assert!(total <= 4 * size + (64 << 20), "storages out of proportion");
            let mut buffer = vec![0; len as usize];
            let _ = file.read_storage(tensor.storage, &mut buffer);
        }
    }
    file.metadata(found.value);
    let _ = file.modules(&found);
    let _ = file.find_raw(None, true);
    let _ = (file.find(Some("model.0")), file.find(Some(python::ROOT)));
}
