"""Handwritten digits, with the loops in main(), in the shape of many tutorials."""
import argparse
import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset


class ConvNet(nn.Module):
    def __init__(self, num_classes=10):
        super(ConvNet, self).__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
        self.drop = nn.Dropout(0.2)
        self.fc = nn.Linear(8 * 16, num_classes)

    def forward(self, x):
        out = self.layer1(x)
        return self.fc(self.drop(out.reshape(out.size(0), -1)))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--lr", type=float, default=0.01)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)

    d = load_digits()
    X = torch.tensor(d.images / 16, dtype=torch.float32).unsqueeze(1)
    y = torch.tensor(d.target)
    train_loader = DataLoader(TensorDataset(X[:600], y[:600]), batch_size=50, shuffle=True)
    test_loader = DataLoader(TensorDataset(X[600:800], y[600:800]), batch_size=50)

    model = ConvNet(10).to(device)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)

    total_step = len(train_loader)
    best_acc = 0.0
    for epoch in range(args.epochs):
        model.train()
        train_loss, train_correct = 0.0, 0
        for i, (images, labels) in enumerate(train_loader):
            images, labels = images.to(device), labels.to(device)
            outputs = model(images)
            loss = criterion(outputs, labels)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            train_loss += loss.item()
            train_correct += (outputs.argmax(1) == labels).sum().item()
            if (i + 1) % 100 == 0:
                print("Epoch [{}/{}], Step [{}/{}], Loss: {:.4f}".format(epoch + 1, args.epochs, i + 1, total_step, loss.item()))
        train_loss /= len(train_loader)
        train_acc = train_correct / len(train_loader.dataset)
        model.eval()
        val_loss = 0.0
        correct = 0
        with torch.no_grad():
            for images, labels in test_loader:
                images, labels = images.to(device), labels.to(device)
                outputs = model(images)
                val_loss += criterion(outputs, labels).item()
                correct += (outputs.argmax(1) == labels).sum().item()
        val_loss /= len(test_loader)
        val_acc = correct / len(test_loader.dataset)
        scheduler.step()
        print(f"Epoch {epoch}: train loss {train_loss:.3f} acc {train_acc:.3f} val loss {val_loss:.3f} val acc {val_acc:.3f}")
        if val_acc > best_acc:
            best_acc = val_acc
            torch.save(model.state_dict(), "best.pt")

if __name__ == "__main__":
    main()
