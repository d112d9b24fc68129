//! Tables as Markdown, and bars as pictures.

use std::{error::Error, path::Path};

use plotters::prelude::*;

/// Rows under a head, printed as Markdown.
pub struct Table {
    columns: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new<const N: usize>(columns: [&str; N]) -> Table {
        Table { columns: columns.map(str::to_owned).to_vec(), rows: Vec::new() }
    }

    pub fn row(&mut self, cells: impl Into<Vec<String>>) {
        let cells = cells.into();
        assert_eq!(cells.len(), self.columns.len(), "a cell for each column");
        self.rows.push(cells);
    }

    pub fn print(&self) {
        println!("| {} |\n|{}", self.columns.join(" | "), "---|".repeat(self.columns.len()));
        for row in &self.rows {
            println!("| {} |", row.join(" | "));
        }
        println!();
    }
}

/// A figure of several rounds: the middle one, and between which they lie.
pub fn spread(figures: &[f64], digits: usize) -> String {
    let low = figures.iter().copied().fold(f64::INFINITY, f64::min);
    let high = figures.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let middle = crate::process::median(figures);
    format!("{} ({} - {})", grouped(middle, digits), grouped(low, digits), grouped(high, digits))
}

/// With commas between thousands.
pub fn grouped(figure: f64, digits: usize) -> String {
    let text = format!("{figure:.digits$}");
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && digit.is_ascii_digit() && (whole.len() - index).is_multiple_of(3) && !grouped.ends_with('-') {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + rest
}

/// Puts what a command printed between the marks of its name in a document, in place of what an earlier run printed.
pub fn put_into(document: &Path, name: &str, printed: &str) {
    let shown = document.display();
    let text = std::fs::read_to_string(document).unwrap_or_else(|e| panic!("reading {shown}: {e}"));
    let (start, end) = (format!("<!-- {name} -->\n"), format!("<!-- /{name} -->\n"));
    let places = text.find(&start).map(|at| at + start.len()).zip(text.find(&end));
    let Some((from, to)) = places else {
        eprintln!("{shown} has no marks for {name}");
        return;
    };
    let text = format!("{}{}\n\n{}", &text[..from], printed.trim_end(), &text[to..]);
    std::fs::write(document, text).unwrap_or_else(|e| panic!("writing {shown}: {e}"));
}

const COLORS: [RGBColor; 4] =
    [RGBColor(31, 119, 180), RGBColor(160, 160, 160), RGBColor(255, 127, 14), RGBColor(44, 160, 44)];

/// A bar for each name, one under the other; ours, those whose names begin with `kvasar`, in a colour of their own.
pub fn bars(file: &Path, title: &str, unit: &str, bars: &[(String, f64)]) -> Result<(), Box<dyn Error>> {
    let height = 90 + 36 * bars.len() as u32;
    let root = SVGBackend::new(file, (900, height)).into_drawing_area();
    root.fill(&WHITE)?;
    let most = bars.iter().map(|(_, figure)| *figure).fold(0.0, f64::max);
    let names: Vec<&str> = bars.iter().map(|(name, _)| name.as_str()).collect();
    let count = bars.len() as f64;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 20))
        .margin(12)
        .margin_right(70)
        .x_label_area_size(36)
        .y_label_area_size(210)
        .build_cartesian_2d(0.0..most * 1.08, 0.0..count)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .y_labels(0)
        .x_labels(8)
        .x_desc(unit)
        .max_light_lines(0)
        .label_style(("sans-serif", 13))
        .draw()?;
    for (index, (name, figure)) in bars.iter().enumerate() {
        let top = count - index as f64;
        let color = COLORS[usize::from(!name.starts_with("kvasar"))];
        chart.draw_series([Rectangle::new([(0.0, top - 0.85), (*figure, top - 0.15)], color.filled())])?;
        let digits = if *figure < 100.0 { 1 } else { 0 };
        let place = chart.backend_coord(&(*figure, top - 0.5));
        root.draw(&Text::new(grouped(*figure, digits), (place.0 + 6, place.1 - 7), ("sans-serif", 14)))?;
        let left = chart.backend_coord(&(0.0, top - 0.5));
        let style = ("sans-serif", 14).into_text_style(&root);
        let right = style.pos(plotters::style::text_anchor::Pos::new(
            plotters::style::text_anchor::HPos::Right,
            plotters::style::text_anchor::VPos::Center,
        ));
        root.draw(&Text::new(names[index], (left.0 - 8, left.1), right))?;
    }
    root.present()?;
    Ok(())
}
