"""Files: upload, list, download, delete, with the official SDK."""

import anthropic
import pytest

from service import Service


def test_a_file_is_uploaded_listed_downloaded_and_deleted(client: anthropic.Anthropic) -> None:
    content = b"name,age\nAda,36\n" * 100_000
    file = client.beta.files.upload(file=("people \u00fc.csv", content, "text/csv"), expires_in_seconds=3_600)
    assert file.filename == "people \u00fc.csv"
    assert (file.mime_type, file.size_bytes, file.downloadable, file.scope) == ("text/csv", len(content), True, None)
    assert file.expires_at is not None and (file.expires_at - file.created_at).total_seconds() == 3_600
    assert client.beta.files.retrieve_metadata(file.id) == file
    assert client.beta.files.download(file.id).read() == content

    assert client.beta.files.delete(file.id).type == "file_deleted"
    with pytest.raises(anthropic.NotFoundError):
        client.beta.files.download(file.id)


def test_a_list_is_paged(client: anthropic.Anthropic) -> None:
    uploaded = [client.beta.files.upload(file=(f"{number}.txt", b"x", "text/plain")).id for number in range(5)]
    listed = [file.id for file in client.beta.files.list(limit=2)]
    assert listed[:5] == uploaded[::-1]
    assert [file.id for file in client.beta.files.list(ids=[uploaded[3], "file_none"])] == [uploaded[3]]
    assert list(client.beta.files.list(scope_id="sesn_none")) == []
    for file in uploaded:
        client.beta.files.delete(file)


def test_the_pages_of_older_clients(service: Service, client: anthropic.Anthropic) -> None:
    uploaded = [client.beta.files.upload(file=(f"{number}.txt", b"x", "text/plain")).id for number in range(3)]
    with service.http() as http:
        first = http.get("/v1/files", params={"limit": 2, "beta": "true"}).json()
        assert (first["has_more"], first["last_id"]) == (True, uploaded[1])
        second = http.get("/v1/files", params={"limit": 1, "after_id": first["last_id"]}).json()
        assert second["first_id"] == uploaded[0]
    for file in uploaded:
        client.beta.files.delete(file)
