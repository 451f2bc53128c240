//! Content blocks: what messages and tool results are made of.
//!
//! The shapes are the API's own. What a client may put where is checked by the server at its boundary;
//! the log holds only blocks that passed.

use serde::{Deserialize, Serialize};

/// One block of a message or of a tool result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ContentBlock {
    /// Plain text.
    Text { text: String },
    /// A picture.
    Image { source: ImageSource },
    /// A PDF or a text document.
    Document {
        source: DocumentSource,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        title: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        context: Option<String>,
    },
    /// One hit of a search; in tool results only.
    SearchResult { source: String, title: String, content: Vec<SearchResultText>, citations: SearchResultCitations },
}

impl ContentBlock {
    /// A text block.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text { text: text.into() }
    }

    /// The text of a text block.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text { text } => Some(text),
            _ => None,
        }
    }
}

/// Where the bytes of a picture are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ImageSource {
    /// In the block, as standard base64.
    Base64 { media_type: String, data: String },
    /// At an address that the model provider fetches.
    Url { url: String },
}

/// Where the bytes of a document are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum DocumentSource {
    /// In the block, as standard base64.
    Base64 { media_type: String, data: String },
    /// In the block, as plain text (`media_type` is `text/plain`).
    Text { media_type: String, data: String },
    /// At an address that the model provider fetches.
    Url { url: String },
}

/// A passage of a search result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum SearchResultText {
    Text { text: String },
}

/// Whether the model may cite a search result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SearchResultCitations {
    pub enabled: bool,
}
