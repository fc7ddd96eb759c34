//! The images of a request: data URLs, and files below the folder that the server was given.

use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use basic_data::{ImageBase, ImageSource};
use basic_models::Checkpoint;
use basic_models::config::Tiles;
use basic_models::outside::excerpt;
use basic_models::processor::ProcessorError;

use crate::error::ApiError;

/// Some clients leave out the padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Reads the image that a URL or, below `files`, a path names; `field` is where the request has it.
pub(crate) fn source(url: &str, field: &str, files: Option<&ImageBase>) -> Result<ImageSource, ApiError> {
    if let Some(rest) = strip_scheme(url, "data:") {
        let Some((kind, data)) = rest.split_once(',') else {
            return Err(ApiError::field(field, "a data URL has a comma before its data: data:image/png;base64,..."));
        };
        if !kind.to_ascii_lowercase().ends_with(";base64") {
            return Err(ApiError::field(field, "a data URL must be base64-encoded: data:image/png;base64,..."));
        }
        let bytes = BASE64.decode(data.trim()).map_err(|error| {
            ApiError::field(field, format!("its data is not base64: {error}")).coded("invalid_image_url")
        })?;
        return Ok(ImageSource::Bytes { name: PathBuf::from(field), bytes: bytes.into() });
    }
    let refused = |message: String| Err(ApiError::field(field, message).coded("invalid_image_url"));
    if strip_scheme(url, "http:").or_else(|| strip_scheme(url, "https:")).is_some() {
        return refused("this server fetches nothing from a network: send the image as a data URL".into());
    }
    let Some(base) = files else {
        return refused(
            "only data URLs are read (basic serve --image-root DIR allows the files below a folder)".into(),
        );
    };
    let path = strip_scheme(url, "file://").unwrap_or(url);
    match base.file(path) {
        Ok(file) => Ok(ImageSource::File(file)),
        // The reason would tell what exists outside the folder.
        Err(_) => refused(format!("there is no file {:?} below the folder that --image-root names", excerpt(path))),
    }
}

fn strip_scheme<'a>(url: &'a str, scheme: &str) -> Option<&'a str> {
    url.get(..scheme.len()).filter(|start| start.eq_ignore_ascii_case(scheme)).map(|_| &url[scheme.len()..])
}

/// The error for an image that cannot be read.
fn unreadable(error: &ProcessorError, image: &ImageSource, field: &str) -> ApiError {
    // The error names the image by its field or its path, which the message has already.
    let said = error.to_string();
    let name = image.name().display().to_string();
    let message = said.strip_prefix(&format!("{name}: ")).map_or(said.clone(), String::from);
    ApiError::field(field, message).coded("invalid_image")
}

/// The tiles of a request's images, given with their fields.
pub(crate) fn tiles(checkpoint: &Checkpoint, images: &[(String, ImageSource)]) -> Result<Vec<Tiles>, ApiError> {
    let tiling = checkpoint.config.tiling();
    let of = |(field, image): &(String, ImageSource)| {
        image.tiles(&tiling, &checkpoint.images).map_err(|error| unreadable(&error, image, field))
    };
    images.iter().map(of).collect()
}

/// The pixel values of an image as the checkpoint's image processor makes them, CHW, tile after tile.
pub(crate) fn pixels(checkpoint: &Checkpoint, image: &ImageSource, field: &str) -> Result<Arc<[f32]>, ApiError> {
    let made = image.process(&checkpoint.images).map_err(|error| unreadable(&error, image, field))?;
    let [channels, height, width] = checkpoint.image_shape();
    if (made.height, made.width) != (height, width) || made.data.len() != made.tiles * channels * height * width {
        let (h, w) = (made.height, made.width);
        return Err(ApiError::field(
            field,
            format!("the image processor makes {h} x {w} pixels of it, the vision encoder takes {height} x {width}"),
        )
        .coded("invalid_image"));
    }
    Ok(made.data.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_url_is_decoded_whatever_its_case_and_padding() {
        for url in ["data:image/png;base64,AQID", "DATA:image/PNG;charset=x;BASE64,AQID", "data:;base64, AQID\n"] {
            let found = source(url, "image", None).unwrap();
            assert_eq!(&*found.bytes().unwrap(), &[1, 2, 3], "{url}");
        }
        assert_eq!(&*source("data:;base64,AQ", "image", None).unwrap().bytes().unwrap(), &[1]);
    }

    #[test]
    fn what_is_no_data_url_is_refused_and_says_what_to_send() {
        for (url, said) in [
            ("data:image/png;base64", "has a comma"),
            ("data:image/png,abc", "must be base64-encoded"),
            ("data:image/png;base64,a b", "not base64"),
            ("https://example.org/cat.png", "fetches nothing from a network"),
            ("HTTP://localhost/", "fetches nothing from a network"),
            ("file:///etc/passwd", "only data URLs are read"),
            ("/etc/passwd", "only data URLs are read"),
            ("é", "only data URLs are read"),
            ("", "only data URLs are read"),
        ] {
            let error = source(url, "messages[0]", None).unwrap_err();
            assert!(error.message.starts_with("messages[0]: ") && error.message.contains(said), "{url}: {error:?}");
            assert_eq!(error.param.as_deref(), Some("messages[0]"));
        }
    }

    #[test]
    fn only_files_below_the_folder_are_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("in")).unwrap();
        std::fs::write(dir.path().join("in/a.png"), [1]).unwrap();
        std::fs::write(dir.path().join("out.png"), [1]).unwrap();
        let base = ImageBase::new(&dir.path().join("in"), None).unwrap();
        let inside = dir.path().join("in/a.png");
        for name in ["a.png", "file://a.png", &format!("file://{}", inside.display()), &inside.display().to_string()] {
            assert!(source(name, "f", Some(&base)).is_ok(), "{name}");
        }
        let outside = dir.path().join("out.png").display().to_string();
        for name in ["../out.png", &outside, "missing.png", "", ".", "file://../out.png"] {
            let error = source(name, "f", Some(&base)).unwrap_err();
            assert!(error.message.contains("there is no file"), "{name}: {error:?}");
        }
    }
}
