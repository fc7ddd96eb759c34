//! The settings of image processing, in the form of Hugging Face checkpoints.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::{ProcessorError, Result, tiles, wanted};

pub(super) const IMAGE_FILE: &str = "preprocessor_config.json";
pub(super) const PROCESSOR_FILE: &str = "processor_config.json";

/// The longest side that settings may have: 4096 x 4096 pixels are 192 MiB of numbers, many times what any
/// vision encoder takes.
const LONGEST_SIDE: u64 = 4096;

/// The image processor of transformers that the settings belong to. They share their steps and differ
/// in their defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageKind {
    /// `CLIPImageProcessor`: resize the shortest edge, centre crop, CLIP's mean and standard deviation.
    Clip,
    /// `SiglipImageProcessor`: resize to a square, no crop, mean and standard deviation 0.5.
    Siglip,
    /// `LlavaImageProcessor`: CLIP's steps, and padding to a square before them.
    Llava,
    /// `Siglip2ImageProcessor`: as many patches as fit with the image's aspect ratio.
    Siglip2,
    /// `LlavaNextImageProcessor`: a base image and the tiles of the best of several resolutions.
    LlavaNext,
}

/// The size that an image is resized to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// The shorter edge gets this length; the longer one follows, rounded down.
    ShortestEdge(u32),
    /// Exactly this size, whatever the aspect ratio.
    Exact {
        /// The number of rows.
        height: u32,
        /// The number of columns.
        width: u32,
    },
}

/// The resampling filter; each has a number in Pillow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resample {
    /// Pillow's `BILINEAR`, 2.
    Bilinear,
    /// Pillow's `BICUBIC`, 3 (a = -0.5).
    Bicubic,
}

/// All settings of an image processor; [`ImageProcessorConfig::clip`] has CLIP's defaults.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageProcessorConfig {
    /// The image processor of transformers.
    pub kind: ImageKind,
    /// The colour that fills an image up to a square before it is resized (LLaVA's `image_aspect_ratio = "pad"`,
    /// `do_pad` of `LlavaImageProcessor`); `None` for no padding.
    pub pad: Option<[u8; 3]>,
    /// The size to resize to; `None` if `do_resize` is false.
    pub size: Option<Size>,
    /// The filter for resizing.
    pub resample: Resample,
    /// `(height, width)` of the centre crop; `None` if `do_center_crop` is false.
    pub crop: Option<(u32, u32)>,
    /// The factor of the pixel values 0..=255; `None` if `do_rescale` is false.
    pub rescale_factor: Option<f64>,
    /// Mean and standard deviation per channel; `None` if `do_normalize` is false.
    pub normalize: Option<([f32; 3], [f32; 3])>,
    /// The resolutions, as height and width, of which the best one for an image is cut into tiles of the size of the crop;
    /// empty except for `LlavaNextImageProcessor`.
    pub pinpoints: Vec<[usize; 2]>,
    /// The patches of an image whose grid follows its aspect ratio; `None` except for `Siglip2ImageProcessor`.
    pub patches: Option<Patches>,
}

/// The patches of images that each have a grid of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patches {
    /// The pixels along a side of a patch.
    pub size: u32,
    /// The most patches of an image.
    pub most: usize,
    /// The rows, and columns, of the encoder's table of positions; the checkpoint determines it.
    pub grid: usize,
}

impl ImageProcessorConfig {
    /// The defaults of `CLIPImageProcessor`, for images of `size` x `size` (224 in transformers).
    pub fn clip(size: u32) -> Self {
        Self {
            kind: ImageKind::Clip,
            pad: None,
            size: Some(Size::ShortestEdge(size)),
            resample: Resample::Bicubic,
            crop: Some((size, size)),
            rescale_factor: Some(1.0 / 255.0),
            normalize: Some(([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.261_302_6, 0.275_777_1])),
            pinpoints: Vec::new(),
            patches: None,
        }
    }

    /// The defaults of `SiglipImageProcessor`, for images of `size` x `size` (224 in transformers).
    pub fn siglip(size: u32) -> Self {
        Self {
            kind: ImageKind::Siglip,
            size: Some(Size::Exact { height: size, width: size }),
            crop: None,
            normalize: Some(([0.5; 3], [0.5; 3])),
            ..Self::clip(size)
        }
    }

    /// The same settings with LLaVA's padding: the image is placed in the middle of a square in the mean colour,
    /// int(mean * 255). Without normalization the colour is that of CLIP's mean.
    #[must_use]
    pub fn with_pad(self) -> Self {
        let mean = self.normalize.or(Self::clip(224).normalize).map_or([0.0; 3], |(mean, _)| mean);
        Self { pad: Some(pad_color(mean.map(shortest))), ..self }
    }

    /// The settings with LLaVA's own key `image_aspect_ratio`, which its config.json has (transformers' does not):
    /// `"pad"` pads as [`ImageProcessorConfig::with_pad`] does, `"square"` leaves the settings unchanged.
    ///
    /// # Errors
    /// Returns [`ProcessorError::Unsupported`] for other values, such as `"anyres"`; `path` is the file that it names.
    pub fn with_aspect_ratio(self, value: &str, path: &Path) -> Result<Self> {
        match value {
            _ if matches!(self.kind, ImageKind::LlavaNext | ImageKind::Siglip2) => Err(ProcessorError::Unsupported {
                path: path.into(),
                key: "image_aspect_ratio".into(),
                value: value.into(),
                supported: "none for a model that cuts images into tiles (image_grid_pinpoints) or keeps their aspect ratio",
            }),
            "pad" => Ok(self.with_pad()),
            "square" => Ok(self),
            other => Err(ProcessorError::Unsupported {
                path: path.into(),
                key: "image_aspect_ratio".into(),
                value: other.into(),
                supported: "pad, square",
            }),
        }
    }

    /// Reads a checkpoint's settings: `image_processor` in processor_config.json (transformers 5), otherwise
    /// preprocessor_config.json. Keys that are absent or null take the class's defaults.
    ///
    /// # Errors
    /// Returns [`ProcessorError::MissingFile`], `Read`, `Json`, or `Unsupported` with the file and the key.
    pub fn load(dir: &Path) -> Result<Self> {
        let (value, path) = file(dir)?;
        Self::from_json(&value, &path)
    }

    /// The settings for the other vision encoders of a model with several, beside those that
    /// [`ImageProcessorConfig::load`] reads; mostly none.
    ///
    /// # Errors
    /// Returns the errors of [`ImageProcessorConfig::load`].
    pub fn load_others(dir: &Path) -> Result<Vec<Self>> {
        let (value, path) = file(dir)?;
        let unsupported = |value: &Value| ProcessorError::Unsupported {
            path: path.clone(),
            key: OTHERS.into(),
            value: crate::outside::excerpt(&value.to_string()),
            supported: "a list of at most 8 image processors, which cut no images into tiles",
        };
        let Some(found) = value.get(OTHERS).filter(|v| !v.is_null()) else { return Ok(Vec::new()) };
        let list = found.as_array().filter(|list| list.len() <= MOST_OTHERS).ok_or_else(|| unsupported(found))?;
        let others = list.iter().map(|value| Self::from_json(value, &path)).collect::<Result<Vec<_>>>()?;
        match others.iter().all(|other| other.pinpoints.is_empty()) {
            true => Ok(others),
            false => Err(unsupported(found)),
        }
    }

    /// Reads the settings from JSON; `path` is the file that errors name.
    ///
    /// # Errors
    /// Returns `Json` or `Unsupported`, with the file and the key.
    pub fn from_json(value: &Value, path: &Path) -> Result<Self> {
        let raw: Raw = wanted::typed(path, value)?;
        let unsupported = |key: &str, value: String, supported| ProcessorError::Unsupported {
            path: path.into(),
            key: key.into(),
            value,
            supported,
        };
        let kind = raw.image_processor_type.or(raw.feature_extractor_type);
        let mut config = match kind.as_deref() {
            None
            | Some(
                "CLIPImageProcessor" | "CLIPImageProcessorFast" | "CLIPImageProcessorPil" | "CLIPFeatureExtractor",
            ) => Self::clip(224),
            // DINOv2's processor, with the same steps and the same defaults.
            Some("BitImageProcessor" | "BitImageProcessorFast" | "BitImageProcessorPil") => Self::clip(224),
            Some("Siglip2ImageProcessor" | "Siglip2ImageProcessorFast" | "Siglip2ImageProcessorPil") => {
                let bounded = |value: Option<u64>, default: u64, most: u64, key: &str| match value.unwrap_or(default) {
                    value if (1..=most).contains(&value) => Ok(value),
                    value => {
                        Err(unsupported(key, value.to_string(), "1 to 256 and 1 to 65536: a patch's side, and patches"))
                    }
                };
                if raw.do_resize == Some(false) {
                    return Err(unsupported("do_resize", "false".into(), "true in a Siglip2ImageProcessor"));
                }
                let patches = Patches {
                    size: bounded(raw.patch_size, 16, 256, "patch_size")? as u32,
                    most: bounded(raw.max_num_patches, 256, 65_536, "max_num_patches")? as usize,
                    grid: 16,
                };
                Self {
                    kind: ImageKind::Siglip2,
                    size: None,
                    resample: Resample::Bilinear,
                    patches: Some(patches),
                    ..Self::siglip(224)
                }
            }
            // DINOv3's rescales before it resizes, which differs by less than the rounding to 8 bits.
            Some("DINOv3ViTImageProcessor" | "DINOv3ViTImageProcessorFast") => Self {
                resample: Resample::Bilinear,
                normalize: Some((IMAGENET_MEAN, IMAGENET_STD)),
                ..Self::siglip(224)
            },
            Some("SiglipImageProcessor" | "SiglipImageProcessorFast" | "SiglipImageProcessorPil") => Self::siglip(224),
            Some("LlavaImageProcessor" | "LlavaImageProcessorFast" | "LlavaImageProcessorPil") => {
                Self { kind: ImageKind::Llava, ..Self::clip(224) }
            }
            Some("LlavaNextImageProcessor" | "LlavaNextImageProcessorFast" | "LlavaNextImageProcessorPil") => {
                Self { kind: ImageKind::LlavaNext, pinpoints: tiles::PINPOINTS.to_vec(), ..Self::clip(224) }
            }
            Some(other) => {
                return Err(unsupported(
                    "image_processor_type",
                    other.into(),
                    "CLIPImageProcessor, SiglipImageProcessor, Siglip2ImageProcessor, BitImageProcessor, DINOv3ViTImageProcessor, \
                     LlavaImageProcessor, LlavaNextImageProcessor",
                ));
            }
        };
        if let Some(size) = raw.size.as_ref().filter(|_| config.patches.is_none()) {
            let square = config.kind == ImageKind::Siglip;
            let supported = "a length, {\"shortest_edge\"} or {\"height\", \"width\"}, of 1 to 4096";
            config.size =
                Some(read_size(size, square).ok_or_else(|| unsupported("size", size.to_string(), supported))?);
        }
        if let Some(size) = &raw.crop_size {
            match read_size(size, true) {
                Some(Size::Exact { height, width }) => config.crop = Some((height, width)),
                _ => {
                    return Err(unsupported(
                        "crop_size",
                        size.to_string(),
                        "a length or {\"height\", \"width\"}, of 1 to 4096",
                    ));
                }
            }
        }
        config.resample = match raw.resample {
            None => config.resample,
            Some(2) => Resample::Bilinear,
            Some(3) => Resample::Bicubic,
            Some(other) => {
                return Err(unsupported("resample", other.to_string(), "2 (bilinear), 3 (bicubic)"));
            }
        };
        let (mean, std) = config.normalize.unwrap_or(([0.0; 3], [1.0; 3]));
        let channels = |key: &str, found: &Option<Value>, default| match found {
            None => Ok(default),
            Some(v) => {
                read_channels(v).ok_or_else(|| unsupported(key, v.to_string(), "a number or three numbers, finite"))
            }
        };
        let (mean, std) = (channels("image_mean", &raw.image_mean, mean)?, channels("image_std", &raw.image_std, std)?);
        if std.contains(&0.0) {
            return Err(unsupported("image_std", format!("{std:?}"), "numbers other than 0"));
        }
        match (raw.do_pad == Some(true), config.kind) {
            (true, ImageKind::Llava) => config.pad = Some(pad_color(exact_mean(&raw.image_mean, mean))),
            // It pads a batch to the same number of tiles, and no image.
            (true, ImageKind::LlavaNext) => {}
            (true, _) => {
                let supported = "false, or true in a LlavaImageProcessor";
                return Err(unsupported("do_pad", "true".into(), supported));
            }
            (false, _) => {}
        }
        if raw.do_convert_rgb == Some(false) {
            return Err(unsupported("do_convert_rgb", "false".into(), "true: images are always three channels"));
        }
        // A tile has the size of the crop, whether it is cropped or not.
        let crops =
            raw.do_center_crop.unwrap_or(config.kind != ImageKind::Siglip) || config.kind == ImageKind::LlavaNext;
        config.crop = config.crop.filter(|_| crops && config.patches.is_none());
        config.size = config.size.filter(|_| raw.do_resize != Some(false));
        let factor = raw.rescale_factor.or(config.rescale_factor);
        config.rescale_factor = factor.filter(|_| raw.do_rescale != Some(false));
        config.normalize = (raw.do_normalize != Some(false)).then_some((mean, std));
        if config.kind == ImageKind::LlavaNext {
            config.read_tiles(raw.image_grid_pinpoints.as_ref(), raw.do_resize, path)?;
        }
        if let Some((key, value, supported)) = config.not_finite() {
            return Err(unsupported(key, value, supported));
        }
        Ok(config)
    }

    /// The number for an 8-bit pixel `value` in a channel. transformers rescales in float64 and continues in float32.
    pub(super) fn number(&self, value: u8, channel: usize) -> f32 {
        let x = self.rescale_factor.map_or(f32::from(value), |factor| (f64::from(value) * factor) as f32);
        self.normalize.map_or(x, |(mean, std)| (x - mean[channel]) / std[channel])
    }

    /// The setting that makes pixel values infinite or NaN, with its value and what is supported.
    fn not_finite(&self) -> Option<(&'static str, String, &'static str)> {
        // Rescaling and normalization are monotonic: if both ends are finite, so is everything between them.
        let finite = |config: &Self| (0..3).all(|c| [0, 255].iter().all(|&v| config.number(v, c).is_finite()));
        if finite(self) {
            return None;
        }
        let rescaled = Self { normalize: None, ..self.clone() };
        let (mean, std) = self.normalize.unwrap_or(([0.0; 3], [1.0; 3]));
        Some(if !finite(&rescaled) {
            let factor = self.rescale_factor.unwrap_or_default();
            ("rescale_factor", format!("{factor:e}"), "a factor that keeps pixel values finite, such as 1/255")
        } else if mean.iter().any(|mean| mean.abs() > 1e30) {
            ("image_mean", format!("{mean:?}"), "means that keep pixel values finite")
        } else {
            ("image_std", format!("{std:?}"), "deviations that keep pixel values finite")
        })
    }
}

/// ImageNet's means and deviations.
const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];

/// The key for the image processors of a model's other vision encoders, which no class of transformers has.
pub(super) const OTHERS: &str = "fused_image_processors";
const MOST_OTHERS: usize = 8;

/// The JSON with a checkpoint's settings, and the file that it is from.
fn file(dir: &Path) -> Result<(Value, PathBuf)> {
    let path = dir.join(PROCESSOR_FILE);
    if let Some(value) = read_json_if_exists(&path)?
        && let Some(nested) = value.get("image_processor").filter(|v| v.is_object())
    {
        return Ok((nested.clone(), path));
    }
    let path = dir.join(IMAGE_FILE);
    let names = "processor_config.json with \"image_processor\", preprocessor_config.json";
    let value = read_json_if_exists(&path)?.ok_or_else(|| ProcessorError::MissingFile { dir: dir.into(), names })?;
    Ok((value, path))
}

#[derive(Deserialize)]
struct Raw {
    image_processor_type: Option<String>,
    feature_extractor_type: Option<String>,
    do_resize: Option<bool>,
    size: Option<Value>,
    resample: Option<i64>,
    do_center_crop: Option<bool>,
    crop_size: Option<Value>,
    do_rescale: Option<bool>,
    rescale_factor: Option<f64>,
    do_normalize: Option<bool>,
    image_mean: Option<Value>,
    image_std: Option<Value>,
    do_convert_rgb: Option<bool>,
    do_pad: Option<bool>,
    image_grid_pinpoints: Option<Value>,
    patch_size: Option<u64>,
    max_num_patches: Option<u64>,
}

/// Reads a length (a square, or the shortest edge), `[h, w]`, `{"shortest_edge"}` or `{"height", "width"}`.
fn read_size(value: &Value, square: bool) -> Option<Size> {
    let length = |v: &Value| v.as_u64().filter(|n| (1..=LONGEST_SIDE).contains(n)).map(|n| n as u32);
    let get = |key| value.get(key).filter(|v: &&Value| !v.is_null());
    if let Some(edge) = length(value) {
        return Some(if square { Size::Exact { height: edge, width: edge } } else { Size::ShortestEdge(edge) });
    }
    if let Some([height, width]) = value.as_array().map(Vec::as_slice) {
        return Some(Size::Exact { height: length(height)?, width: length(width)? });
    }
    match (get("shortest_edge"), get("longest_edge"), get("height"), get("width")) {
        (Some(edge), None, None, None) => Some(Size::ShortestEdge(length(edge)?)),
        (None, None, Some(height), Some(width)) => Some(Size::Exact { height: length(height)?, width: length(width)? }),
        _ => None,
    }
}

/// transformers' colour for padding: int(mean * 255).
fn pad_color(mean: [f64; 3]) -> [u8; 3] {
    mean.map(|value| (value * 255.0) as u8)
}

/// The means as written in the file, before they are rounded to 32 bits.
fn exact_mean(found: &Option<Value>, mean: [f32; 3]) -> [f64; 3] {
    let list = found.as_ref().and_then(Value::as_array);
    let exact = |i: usize| list.map_or(found.as_ref(), |list| list.get(i)).and_then(Value::as_f64);
    [0, 1, 2].map(|i| exact(i).unwrap_or_else(|| shortest(mean[i])))
}

/// The number with the fewest digits that rounds to `value` in 32 bits, which is what the file had.
pub(super) fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

fn read_channels(value: &Value) -> Option<[f32; 3]> {
    let number = |v: &Value| v.as_f64().map(|x| x as f32).filter(|x| x.is_finite());
    match value.as_array().map(Vec::as_slice) {
        Some([r, g, b]) => Some([number(r)?, number(g)?, number(b)?]),
        Some(_) => None,
        None => number(value).map(|x| [x; 3]),
    }
}

/// Reads the JSON in `path`; `None` if there is no such file.
pub(super) fn read_json_if_exists(path: &Path) -> Result<Option<Value>> {
    let text = match crate::outside::read_json_text(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(ProcessorError::Read { path: path.into(), source });
        }
    };
    serde_json::from_str(&text).map(Some).map_err(|source| ProcessorError::Json { path: path.into(), source })
}

/// Writes JSON, indented.
pub(super) fn write_json(path: &Path, value: &Value) -> Result<()> {
    let text = format!("{value:#}\n");
    std::fs::write(path, text).map_err(|source| ProcessorError::Write { path: path.into(), source })
}
