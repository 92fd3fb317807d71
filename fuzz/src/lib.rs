//! What the fuzz targets do. It lies among the tests, which replay the corpus with it.

#[path = "../../tests/forge.rs"]
pub mod forge;
#[path = "../../tests/fuzzing.rs"]
pub mod fuzzing;
