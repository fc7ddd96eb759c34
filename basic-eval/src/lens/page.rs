//! Renders the lens page: the image with its patches, and a slider over the layers.

use std::collections::BTreeMap;
use std::io::Cursor;

use basic_data::ImageSource;
use basic_models::Checkpoint;
use image::{ImageFormat, RgbImage};
use minijinja::{Environment, UndefinedBehavior, context};
use serde::Serialize;

use super::{Grid, ImageReading, LayerReading, LensError, Near, Place, Reading, page_data};

/// The style sheet that all pages share, and the lens's own.
const STYLE: &str = concat!(include_str!("../page.css"), "\n", include_str!("lens.css"));
const SCRIPT: &str = concat!(include_str!("data.js"), "\n", include_str!("lens.js"));
const TEMPLATE: &str = include_str!("lens.html");

/// One checkpoint's part of the page.
#[derive(Debug, Clone)]
pub struct Pictured<'a> {
    /// The checkpoint's name on the page.
    pub name: String,
    /// The lens's reading of the prompt.
    pub reading: &'a Reading,
    /// The places of the visual embeddings.
    pub grid: &'a Grid,
    /// The number of supervising layers (k).
    pub k: usize,
    /// The checkpoint's answers to show beside the image, each with a label that says what its input was.
    pub answers: Vec<(&'static str, String)>,
    /// For each image its name and its pixels as the model sees them, from [`seen_image`].
    pub images: Vec<(String, String)>,
}

#[derive(Serialize)]
struct Data {
    /// The factor by which similarities and probabilities are multiplied.
    scale: f32,
    pictures: Vec<String>,
    models: Vec<ModelData>,
}

#[derive(Serialize)]
struct ModelData {
    name: String,
    answers: BTreeMap<&'static str, String>,
    k: usize,
    layers: Vec<usize>,
    top: usize,
    side: usize,
    places: Vec<Place>,
    tokens: Vec<String>,
    /// The bytes of a token's index: 2 or 4.
    width: usize,
    images: Vec<ImageData>,
}

/// One image's numbers, base64-encoded. Each list has the values of all layers, one layer after the other.
#[derive(Serialize)]
struct ImageData {
    name: String,
    picture: usize,
    text_rows: usize,
    weight: String,
    /// For each query of a resampler its attention to each patch of the grid.
    queries: Option<String>,
    norm: String,
    angle: String,
    attention: String,
    /// One byte per visual embedding and layer: 0 for no, 1 for yes, 2 if it doesn't count.
    meaningful: String,
    /// For each kind of nearness: the tokens' indices, and their similarities or probabilities.
    nearest: [String; 2],
    scores: Option<[String; 2]>,
    logits: Option<[String; 2]>,
    end_share: Vec<Option<f64>>,
}

/// The image as the model sees it, as a `data:` URL of a PNG: the pixels after resizing and cropping, which the patches
/// divide; the base image of an image that is cut into tiles.
///
/// # Errors
///
/// [`LensError`] that names the image.
pub fn seen_image(checkpoint: &Checkpoint, image: &ImageSource) -> Result<String, LensError> {
    let pixels = image.pixels(checkpoint)?;
    let config = checkpoint.images.config();
    let factor = config.rescale_factor.unwrap_or(1.0) as f32;
    let (mean, std) = config.normalize.unwrap_or(([0.0; 3], [1.0; 3]));
    // As the first vision encoder sees it, if there are several.
    let (height, width) = match checkpoint.config.is_fused() {
        true => (checkpoint.config.vision_config.side(), checkpoint.config.vision_config.side()),
        false => (pixels.height, pixels.width),
    };
    let plane = height * width;
    let seen = RgbImage::from_fn(width as u32, height as u32, |x, y| {
        let at = y as usize * width + x as usize;
        let value = |c: usize| (pixels.data[c * plane + at] * std[c] + mean[c]) / factor;
        image::Rgb([0, 1, 2].map(|c| value(c).round().clamp(0.0, 255.0) as u8))
    });
    let mut png = Cursor::new(Vec::new());
    let failed = |source| LensError::Png { image: image.name().into(), source };
    seen.write_to(&mut png, ImageFormat::Png).map_err(failed)?;
    Ok(page_data::picture(png.get_ref()))
}

/// Renders the page of one checkpoint, or of two side by side. It needs neither a network nor other files. `facts` are
/// pairs of name and value that are shown at the top.
///
/// # Errors
///
/// [`LensError::Template`] and [`LensError::Json`], which are bugs in this crate.
pub fn lens_html(models: &[Pictured<'_>], facts: &[(&str, String)]) -> Result<String, LensError> {
    let mut pictures: Vec<String> = Vec::new();
    let models: Vec<ModelData> = models.iter().map(|model| model_data(model, &mut pictures)).collect();
    let names: Vec<String> = models.iter().map(|model| model.name.clone()).collect();
    let data = page_data::script_json(&Data { scale: page_data::SCALE, pictures, models })?;
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    // minijinja escapes inserted values in templates whose name ends in `.html`.
    environment.add_template("lens.html", TEMPLATE)?;
    let page = context! { style => STYLE, script => SCRIPT, names, facts, data };
    Ok(environment.get_template("lens.html")?.render(page)?)
}

fn model_data(model: &Pictured<'_>, pictures: &mut Vec<String>) -> ModelData {
    // Tokens are indices into a table: these are shorter than token ids, and each text is stored once.
    let place: BTreeMap<u32, u32> = model.reading.tokens.keys().zip(0u32..).map(|(id, at)| (*id, at)).collect();
    let wide = place.len() > usize::from(u16::MAX);
    let layers = model.reading.images.first().map(|image| image.layers.as_slice()).unwrap_or_default();
    let images = model.reading.images.iter().zip(&model.images).map(|(image, (name, picture))| {
        // Two checkpoints mostly see the same pixels, which are then stored once.
        let at = pictures.iter().position(|other| other == picture).unwrap_or_else(|| {
            pictures.push(picture.clone());
            pictures.len() - 1
        });
        image_data(image, name, at, &place, wide)
    });
    let images = images.collect();
    ModelData {
        name: model.name.clone(),
        answers: model.answers.iter().cloned().collect(),
        k: model.k,
        layers: layers.iter().map(|layer| layer.layer).collect(),
        top: layers.first().and_then(|layer| layer.nearest.first()).map_or(0, Vec::len),
        side: model.grid.side,
        places: model.grid.places.clone(),
        tokens: model.reading.tokens.values().map(|token| token.text.clone()).collect(),
        width: if wide { 4 } else { 2 },
        images,
    }
}

fn image_data(image: &ImageReading, name: &str, picture: usize, place: &BTreeMap<u32, u32>, wide: bool) -> ImageData {
    let layers = &image.layers;
    let m = image.attention.len();
    let lists = |of: fn(&LayerReading) -> &Vec<Vec<Near>>| -> [String; 2] {
        let near = || layers.iter().flat_map(of).flatten();
        let indices = near().map(|(id, _)| place.get(id).copied().unwrap_or(0));
        let indices = if wide { page_data::indices(indices) } else { page_data::short_indices(indices) };
        [indices, page_data::shares(near().map(|(_, value)| *value))]
    };
    let given =
        |of: fn(&LayerReading) -> &Vec<Vec<Near>>| layers.iter().any(|layer| !of(layer).is_empty()).then(|| lists(of));
    let attention = |layer: &LayerReading| layer.attention.clone().unwrap_or_else(|| vec![0.0; m]);
    ImageData {
        name: name.to_string(),
        picture,
        text_rows: image.text_rows,
        weight: page_data::floats(image.attention.iter().copied()),
        queries: (!image.queries.is_empty()).then(|| page_data::floats(image.queries.iter().flatten().copied())),
        norm: page_data::floats(layers.iter().flat_map(|layer| layer.norm.iter().copied())),
        angle: page_data::degrees(layers.iter().flat_map(|layer| layer.angle.iter().copied())),
        attention: page_data::floats(layers.iter().flat_map(attention)),
        meaningful: page_data::bytes(
            layers.iter().flat_map(|layer| layer.meaningful.iter().map(|m| m.map_or(2, u8::from))),
        ),
        nearest: lists(|layer| &layer.nearest),
        scores: given(|layer| &layer.scores),
        logits: given(|layer| &layer.logits),
        end_share: layers.iter().map(|layer| layer.end_share).collect(),
    }
}
