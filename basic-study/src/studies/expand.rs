//! From a study to its cells, and to what has to be run for them.

use std::path::{Path, PathBuf};

use serde_json::Value;
use toml::Table;

use super::AblateError;
use super::embedded_world::World;
use super::factor::{Factor, Grid};
use super::layout::Layout;
use super::places::Places;
use super::resolve::{Layer, Resolved, Resolver};
use super::result_key::Keys;
use super::study::{Study, repeated};

/// Cells that are compared with each other: a factor or a grid, in one setting.
#[derive(Debug)]
pub(super) struct Group {
    pub setting: Option<String>,
    pub name: String,
    /// What its numbers are, where its cells are values of a key.
    pub axis: Option<String>,
    /// Its cells, by their place in [`Expanded::cells`].
    pub cells: Vec<usize>,
}

/// One combination of overrides.
#[derive(Debug)]
pub(super) struct Cell {
    /// `setting/factor/name`
    pub id: String,
    pub name: String,
    /// The number that the cell stands for, where its factor is numeric.
    pub x: Option<f64>,
    /// In a grid, the levels of its other axes.
    pub series: String,
    /// The cell that it is compared with; maybe itself.
    pub baseline: usize,
    /// A chain of stages for each of the study's seeds.
    pub chains: Vec<Chain>,
}

/// The stages of a cell with one seed.
#[derive(Debug, Clone)]
pub(super) struct Chain {
    pub seed: u64,
    pub stages: Vec<Planned>,
}

/// A stage that has a result, or needs one.
#[derive(Debug, Clone)]
pub(super) struct Planned {
    pub hash: String,
    pub key: Value,
    pub recipe: Resolved,
    /// Where its result lies,
    pub folder: PathBuf,
    /// and its run: its checkpoint, once it is done.
    pub run: PathBuf,
}

/// A study, ready to be run.
#[derive(Debug)]
pub(super) struct Expanded {
    pub path: PathBuf,
    pub study: Study,
    pub world: Option<World>,
    /// So many of the answers to its questions are kept with each result.
    pub samples: usize,
    pub groups: Vec<Group>,
    pub cells: Vec<Cell>,
}

/// A cell before its recipes are resolved.
struct Draft {
    name: String,
    x: Option<f64>,
    series: String,
    layers: Vec<Table>,
    /// The cell of its own group that it is compared with.
    baseline: Option<String>,
}

/// Expands the study in a file, for an output directory.
pub(super) fn expand(
    path: &Path,
    study: Study,
    out: &Path,
    sets: &[String],
    layout: Layout,
) -> Result<Expanded, AblateError> {
    let world = study.world.as_ref().map(|config| World::new(config, out, layout));
    let wrong = |reason: String| AblateError::Study { path: path.into(), reason };
    let (mut groups, mut cells, mut wanted) = (Vec::new(), Vec::new(), Vec::new());
    {
        let places = Places { world: world.as_ref(), moved: study.moved.as_ref() };
        let resolver = Resolver::new(path, &study, places, sets)?;
        let mut keys = Keys::new(&study, places);
        let settings: Vec<Option<&super::factor::Variant>> =
            if study.settings.is_empty() { vec![None] } else { study.settings.iter().map(Some).collect() };
        for setting in settings {
            for (name, axis, drafts) in drafts(&study).map_err(wrong)? {
                if let Some(twice) = repeated(drafts.iter().map(|draft| &draft.name)) {
                    return Err(wrong(format!("{name}: two cells are called \"{twice}\"")));
                }
                let first = cells.len();
                for draft in drafts {
                    let above = setting.map(|setting| setting.name.clone()).into_iter();
                    let id = above.chain([name.clone(), draft.name.clone()]).collect::<Vec<_>>().join("/");
                    let sets = setting.map(|setting| &setting.set).into_iter().chain(&draft.layers);
                    let layers: Vec<Layer> =
                        sets.map(|set| Layer { origin: format!("cell {id}"), set: set.clone() }).collect();
                    let mut chains = Vec::new();
                    for seed in &study.seeds {
                        let recipes: Result<Vec<Resolved>, AblateError> =
                            (0..study.stages.len()).map(|stage| resolver.recipe(stage, *seed, &layers)).collect();
                        let recipes = recipes?;
                        let of = keys.of(&recipes).map_err(|error| wrong(format!("cell {id}: {error}")))?;
                        let named: Vec<&str> = setting
                            .map(|setting| setting.name.as_str())
                            .into_iter()
                            .chain([draft.name.as_str()])
                            .collect();
                        let run = out.join("runs").join(format!("{}-seed{seed}", named.join("-")));
                        let stages = recipes.into_iter().zip(of).zip(&study.stages);
                        let stages = stages.map(|((recipe, (hash, key)), stage)| match layout {
                            Layout::Hashed => {
                                let folder = out.join("cells").join(&hash);
                                Planned { hash, key, recipe, run: folder.join("run"), folder }
                            }
                            Layout::Named => {
                                let folder = run.join(&stage.name);
                                Planned { hash, key, recipe, run: folder.clone(), folder }
                            }
                        });
                        chains.push(Chain { seed: *seed, stages: stages.collect() });
                    }
                    wanted.push((draft.baseline, setting.map(|setting| setting.name.clone())));
                    let Draft { name, x, series, .. } = draft;
                    cells.push(Cell { id, name, x, series, baseline: 0, chains });
                }
                let setting = setting.map(|setting| setting.name.clone());
                groups.push(Group { setting, name, axis, cells: (first..cells.len()).collect() });
            }
        }
    }
    for (index, (own, setting)) in wanted.into_iter().enumerate() {
        let group = groups.iter().find(|group| group.cells.contains(&index)).map(|group| &group.cells);
        // A factor's own baseline is one of its cells; the study's may be in any factor of the setting.
        let here = groups.iter().filter(|group| own.is_none() && group.setting == setting);
        let among = group.into_iter().flatten().chain(here.flat_map(|group| &group.cells));
        let name = own.as_ref().or(study.baseline.as_ref());
        let found = among.copied().find(|at| Some(&cells[*at].name) == name);
        cells[index].baseline = found.ok_or_else(|| match name {
            Some(name) => wrong(format!("cell {}: the baseline \"{name}\" is no cell", cells[index].id)),
            None => wrong("baseline: name the cell that the others are compared with".into()),
        })?;
    }
    Ok(Expanded { path: path.into(), study, world, samples: 0, groups, cells })
}

type Drafts = (String, Option<String>, Vec<Draft>);

fn drafts(study: &Study) -> Result<Vec<Drafts>, String> {
    let mut all = Vec::new();
    for factor in &study.factors {
        let cells = factor.variants().map_err(|reason| format!("factors, {}: {reason}", factor.name))?;
        let drafts = cells.into_iter().map(|variant| Draft {
            name: variant.name,
            x: variant.x,
            series: String::new(),
            layers: vec![factor.set.clone(), variant.set],
            baseline: factor.baseline.clone(),
        });
        let drafts: Vec<Draft> = drafts.collect();
        let numeric = drafts.iter().all(|draft| draft.x.is_some());
        let axis = factor.key.as_ref().unwrap_or(&factor.name);
        all.push((factor.name.clone(), numeric.then(|| axis.clone()), drafts));
    }
    if let Some(grid) = &study.grid {
        all.push(grid_drafts(grid).map_err(|reason| format!("grid: {reason}"))?);
    }
    Ok(all)
}

/// All combinations, the last axis fastest.
fn grid_drafts(grid: &Grid) -> Result<Drafts, String> {
    let mut axes = Vec::new();
    for axis in &grid.axes {
        let Factor { name, set, baseline, .. } = axis;
        if !set.is_empty() || baseline.is_some() {
            return Err(format!("axis {name}: `set` and `baseline` belong to the grid"));
        }
        let levels = axis.variants().map_err(|reason| format!("axis {name}: {reason}"))?;
        if let Some(twice) = repeated(levels.iter().map(|level| &level.name)) {
            return Err(format!("axis {name}: two levels are called \"{twice}\""));
        }
        axes.push(levels);
    }
    if axes.is_empty() {
        return Err("needs axes".into());
    }
    // By axis, the place of the baseline's level.
    let mut compared = vec![None; axes.len()];
    for (name, level) in &grid.baseline {
        let at = grid.axes.iter().position(|axis| axis.name == *name);
        let at = at.ok_or_else(|| format!("baseline: there is no axis \"{name}\""))?;
        let level = level.as_str().map_or_else(|| level.to_string(), String::from);
        let place = axes[at].iter().position(|variant| variant.name == level);
        compared[at] = Some(place.ok_or_else(|| format!("baseline: axis {name} has no level \"{level}\""))?);
    }
    if compared.iter().all(Option::is_none) {
        return Err("baseline: name an axis and its level, such as { arm = \"llava\" }".into());
    }
    let numeric = axes.iter().position(|levels| levels.iter().all(|level| level.x.is_some()));
    let name = |places: &[usize]| {
        let names = places.iter().zip(&axes).map(|(place, axis)| axis[*place].name.clone());
        names.collect::<Vec<_>>().join(", ")
    };
    let mut drafts = Vec::new();
    let total: usize = axes.iter().map(Vec::len).product();
    for index in 0..total {
        let mut rest = index;
        let mut places: Vec<usize> = axes
            .iter()
            .rev()
            .map(|axis| {
                let place = rest % axis.len();
                rest /= axis.len();
                place
            })
            .collect();
        places.reverse();
        let base: Vec<usize> = places.iter().zip(&compared).map(|(place, base)| base.unwrap_or(*place)).collect();
        let level = |at: usize| &axes[at][places[at]];
        let others = (0..axes.len()).filter(|at| Some(*at) != numeric).map(|at| level(at).name.clone());
        drafts.push(Draft {
            name: name(&places),
            x: numeric.and_then(|at| level(at).x),
            series: others.collect::<Vec<_>>().join(", "),
            layers: std::iter::once(grid.set.clone()).chain((0..axes.len()).map(|at| level(at).set.clone())).collect(),
            baseline: Some(name(&base)),
        });
    }
    Ok((grid.name.clone(), numeric.map(|at| grid.axes[at].name.clone()), drafts))
}

impl Expanded {
    /// Where its paths lead.
    pub fn places(&self) -> Places<'_> {
        Places { world: self.world.as_ref(), moved: self.study.moved.as_ref() }
    }

    /// Whether any of `patterns` means the cell: its name, its id, or the beginning of its id.
    pub fn chosen(cell: &Cell, patterns: &[String]) -> bool {
        let meant = |pattern: &String| {
            let pattern = pattern.trim_end_matches('/');
            let inside = cell.id.strip_prefix(pattern).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
            inside || cell.name == pattern || cell.id.split('/').any(|part| part == pattern)
        };
        patterns.is_empty() || patterns.iter().any(meant)
    }
}
