//! Content blocks as clients send them.
//!
//! The log takes any block of `session::content`; this is where it is decided which of them a client may send, in
//! which place.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use session::content::{ContentBlock, DocumentSource, ImageSource, SearchResultCitations, SearchResultText};

use super::error::ApiError;
use super::fields::{self, Fields};

const BLOCKS_MAX: usize = 1_000;
const URL_CHARACTERS_MAX: usize = 8_192;
const IMAGE_TYPES: [&str; 4] = ["image/jpeg", "image/png", "image/gif", "image/webp"];

/// Where the blocks stand.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Message,
    ToolResult,
}

/// Reads `content`: an array of blocks.
pub(super) fn read(items: Vec<Value>, path: &str, place: Place) -> Result<Vec<ContentBlock>, ApiError> {
    if items.len() > BLOCKS_MAX {
        return Err(ApiError::invalid(format!("{path}: {} blocks; at most {BLOCKS_MAX} are allowed", items.len())));
    }
    items
        .into_iter()
        .enumerate()
        .map(|(index, item)| read_block(Fields::of(item, format!("{path}[{index}]"))?, place))
        .collect()
}

fn read_block(mut block: Fields, place: Place) -> Result<ContentBlock, ApiError> {
    let kind = block.required_string("type")?;
    let read = match (kind.as_str(), place) {
        ("text", _) => ContentBlock::Text { text: block.required_string("text")? },
        ("image", _) => ContentBlock::Image { source: read_image_source(&mut block)? },
        ("document", _) => ContentBlock::Document {
            source: read_document_source(&mut block)?,
            title: block.string("title")?,
            context: block.string("context")?,
        },
        ("search_result", Place::ToolResult) => read_search_result(&mut block)?,
        ("redacted", Place::Message) => {
            return Err(ApiError::invalid(format!("{}: redacted blocks come from the server alone", block.at("type"))));
        }
        (_, Place::Message) => return Err(unknown_type(&block, "text, image or document")),
        (_, Place::ToolResult) => return Err(unknown_type(&block, "text, image, document or search_result")),
    };
    block.finish()?;
    Ok(read)
}

fn unknown_type(object: &Fields, expected: &str) -> ApiError {
    ApiError::invalid(format!("{}: expected {expected}", object.at("type")))
}

fn read_image_source(block: &mut Fields) -> Result<ImageSource, ApiError> {
    let mut source = required_object(block, "source")?;
    let read = match source.required_string("type")?.as_str() {
        "base64" => {
            let media_type = source.required_string("media_type")?;
            if !IMAGE_TYPES.contains(&media_type.as_str()) {
                let path = source.at("media_type");
                return Err(ApiError::invalid(format!("{path}: expected one of {}", IMAGE_TYPES.join(", "))));
            }
            ImageSource::Base64 { media_type, data: read_base64(&mut source)? }
        }
        "url" => ImageSource::Url { url: read_url(&mut source)? },
        "file" => return Err(no_files(&source)),
        _ => return Err(unknown_type(&source, "base64 or url")),
    };
    source.finish()?;
    Ok(read)
}

fn read_document_source(block: &mut Fields) -> Result<DocumentSource, ApiError> {
    let mut source = required_object(block, "source")?;
    let read = match source.required_string("type")?.as_str() {
        "base64" => {
            let media_type = read_media_type(&mut source, "application/pdf")?;
            DocumentSource::Base64 { media_type, data: read_base64(&mut source)? }
        }
        "text" => {
            let media_type = read_media_type(&mut source, "text/plain")?;
            DocumentSource::Text { media_type, data: source.required_string("data")? }
        }
        "url" => DocumentSource::Url { url: read_url(&mut source)? },
        "file" => return Err(no_files(&source)),
        _ => return Err(unknown_type(&source, "base64, text or url")),
    };
    source.finish()?;
    Ok(read)
}

fn read_search_result(block: &mut Fields) -> Result<ContentBlock, ApiError> {
    let source = block.required_string("source")?;
    let title = block.required_string("title")?;
    let path = block.at("content");
    let mut content = Vec::new();
    for (index, item) in block.array("content")?.unwrap_or_default().into_iter().enumerate() {
        let mut passage = Fields::of(item, format!("{path}[{index}]"))?;
        if passage.required_string("type")? != "text" {
            return Err(unknown_type(&passage, "text"));
        }
        content.push(SearchResultText::Text { text: passage.required_string("text")? });
        passage.finish()?;
    }
    let mut citations = required_object(block, "citations")?;
    let enabled = citations.boolean("enabled")?.unwrap_or(false);
    citations.finish()?;
    Ok(ContentBlock::SearchResult { source, title, content, citations: SearchResultCitations { enabled } })
}

fn required_object(owner: &mut Fields, name: &'static str) -> Result<Fields, ApiError> {
    let path = owner.at(name);
    Fields::of(owner.required(name)?, path)
}

fn read_media_type(source: &mut Fields, expected: &str) -> Result<String, ApiError> {
    let media_type = source.required_string("media_type")?;
    if media_type == expected {
        return Ok(media_type);
    }
    Err(ApiError::invalid(format!("{}: expected {expected}", source.at("media_type"))))
}

fn read_base64(source: &mut Fields) -> Result<String, ApiError> {
    let data = source.required_string("data")?;
    if data.is_empty() || STANDARD.decode(&data).is_err() {
        return Err(ApiError::invalid(format!("{}: expected standard base64", source.at("data"))));
    }
    Ok(data)
}

/// An address for the model provider to fetch; this server never does.
fn read_url(source: &mut Fields) -> Result<String, ApiError> {
    let text = source.required_string("url")?;
    let path = source.at("url");
    fields::check_length(&text, &path, 1, URL_CHARACTERS_MAX)?;
    match url::Url::parse(&text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") => Ok(text),
        _ => Err(ApiError::invalid(format!("{path}: expected an http or https URL"))),
    }
}

fn no_files(source: &Fields) -> ApiError {
    ApiError::unsupported(&source.at("type"), "file sources need the Files API, which does not exist yet; send base64")
}
