from pixelmill.tasks.report import summarise_run, summary_markdown


def test_run_and_evaluation_are_told_in_tables(store, evaluation, kit):
    run = summarise_run(store, collection=kit.COLLECTION)
    text = summary_markdown(evaluation, run)
    assert text.startswith("# harbour\n")
    assert "9 images, run `20260101T000000-aaaaaa` of 2026-01-01, 1 of 1 shards done" in text
    assert "| AP |" in text
    assert "0.500 |" in text
    assert "| car | 12 | 11 | 0.750 | 0.875 |" in text
    assert "| read | missing\\_file | gone.jpg | 1 | 1 |" in text


def test_every_table_row_has_the_columns_of_its_head(store, evaluation, kit):
    text = summary_markdown(evaluation, summarise_run(store, collection=kit.COLLECTION))
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        widths = {line.replace("\\|", "").count("|") for line in lines}
        assert len(widths) <= 1, block


def test_markup_in_names_is_disarmed(store, evaluation, kit):
    text = summary_markdown(evaluation, summarise_run(store, collection=kit.COLLECTION))
    assert "<script" not in text
    assert "&lt;script&gt;" in text


def test_either_part_may_be_absent(store, evaluation, kit):
    run = summarise_run(store, collection=kit.COLLECTION)
    assert "## Evaluation" not in summary_markdown(None, run)
    assert "shards" not in summary_markdown(evaluation, None)
    assert summary_markdown(None, None) == "# Pixelmill\n"
