"""How a submission is usually written: torch, a DataLoader with eight workers, one image at a time.

    python tests/benchmarks/rivals/submission.py MODEL.safetensors FOLDER OUT.csv

After the inference program that came with the competition: Pillow, torchvision's transforms, batch 1, eager.
"""

import csv
import sys
import time
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from training.model.model_file import load_model

WORKERS = 8


class Images(Dataset):
    """All JPEG files below a folder."""

    def __init__(self, folder, card):
        self.folder = folder
        self.files = sorted(folder.rglob("*.jpg"))
        self.transform = transforms.Compose(
            [
                transforms.Resize((card.size, card.size)),
                transforms.ToTensor(),
                transforms.Normalize(card.mean, card.std),
            ]
        )

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        file = self.files[index]
        with Image.open(file) as image:
            return self.transform(image.convert("RGB")), str(file.relative_to(self.folder))


def main(model_path, folder, out):
    """Predict everything and write the file."""
    model, card = load_model(model_path)
    model.eval()
    seconds, rows = 0.0, []
    with torch.no_grad():
        for images, names in DataLoader(Images(folder, card), batch_size=1, num_workers=WORKERS):
            start = time.perf_counter()
            shares = torch.softmax(model(images), dim=1)
            seconds += time.perf_counter() - start
            rows.append([names[0], card.classes[int(shares.argmax())], *map(float, shares[0])])
    with out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "class", *card.classes])
        writer.writerows(rows)
    sys.stdout.write(f'{{"inference_only": {seconds}}}\n')


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
