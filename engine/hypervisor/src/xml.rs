//! XML that is written: indented, and escaped whatever the text is.

/// An attribute's name and value.
pub(crate) type Attribute<'a> = (&'a str, &'a str);

/// A document under way. Every element that was opened must be closed before it is finished.
pub(crate) struct Xml {
    text: String,
    open: Vec<String>,
}

impl Xml {
    pub(crate) fn new() -> Xml {
        Xml { text: "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n".to_owned(), open: Vec::new() }
    }

    /// An element with others in it.
    pub(crate) fn open(&mut self, name: &str, attributes: &[Attribute<'_>]) {
        self.start(name, attributes);
        self.text.push_str(">\n");
        self.open.push(name.to_owned());
    }

    pub(crate) fn close(&mut self) {
        let name = self.open.pop().expect("what is closed was opened");
        self.indent();
        self.text.push_str(&format!("</{name}>\n"));
    }

    /// An element with nothing in it.
    pub(crate) fn empty(&mut self, name: &str, attributes: &[Attribute<'_>]) {
        self.start(name, attributes);
        self.text.push_str("/>\n");
    }

    /// An element with a text in it.
    pub(crate) fn text(&mut self, name: &str, attributes: &[Attribute<'_>], text: &str) {
        self.start(name, attributes);
        self.text.push_str(&format!(">{}</{name}>\n", escape(text)));
    }

    pub(crate) fn finish(self) -> String {
        debug_assert!(self.open.is_empty(), "every element is closed");
        self.text
    }

    fn indent(&mut self) {
        let depth = self.open.len();
        self.text.extend(std::iter::repeat_n("  ", depth));
    }

    fn start(&mut self, name: &str, attributes: &[Attribute<'_>]) {
        self.indent();
        self.text.push_str(&format!("<{name}"));
        for (name, value) in attributes {
            self.text.push_str(&format!(" {name}=\"{}\"", escape(value)));
        }
    }
}

/// Good in texts and in attributes. What no XML 1.0 document can hold (§2.2, most control characters) becomes U+FFFD.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&apos;"),
            '\t' => escaped.push_str("&#9;"),
            '\n' => escaped.push_str("&#10;"),
            '\r' => escaped.push_str("&#13;"),
            c if c < ' ' || matches!(c, '\u{fffe}' | '\u{ffff}') => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn whatever_is_written_is_read_back(value in "\\PC*|.*", text in ".*") {
            let mut xml = Xml::new();
            xml.open("a", &[("b", &value)]);
            xml.text("c", &[], &text);
            xml.close();
            let written = xml.finish();
            let read = roxmltree::Document::parse(&written).unwrap();
            let kept = |text: &str| -> String {
                let forbidden =
                    |c: char| (c < ' ' && !"\t\n\r".contains(c)) || matches!(c, '\u{fffe}' | '\u{ffff}');
                text.chars().map(|c| if forbidden(c) { '\u{fffd}' } else { c }).collect()
            };
            prop_assert_eq!(read.root_element().attribute("b").unwrap(), kept(&value));
            let child = read.root_element().first_element_child().unwrap();
            prop_assert_eq!(child.text().unwrap_or_default(), kept(&text));
        }
    }
}
