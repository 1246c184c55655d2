from tests.golden import FOLDER, golden_files, resolved

for old in FOLDER.glob("*.yaml"):
    old.unlink()
for file in golden_files():
    file.write_text(resolved(file))
    print(file.name)
