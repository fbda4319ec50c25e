"""python -m hw_model.validation prints the tables of docs/validation.md."""

from hw_model.validation.report import markdown

if __name__ == "__main__":
    print(markdown())
