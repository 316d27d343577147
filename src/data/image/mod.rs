//! Image files: decoding, resizing, encoding.

mod jpeg;
pub mod photo;
pub mod picture;
pub(crate) mod smooth;
