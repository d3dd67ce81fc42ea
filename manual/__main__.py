"""Write the pages of docs/ that are made from the code: `make reference`."""

from manual.pages import PAGES, text

if __name__ == "__main__":
    for path in PAGES:
        path.write_text(text(path))
