"""A small image classifier, in the shape of PyTorch's 60-minute tutorial."""

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import torch.optim as optim
import torchvision.transforms as transforms
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, Dataset

device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
batch_size = 16

transform = transforms.Compose(
    [
        transforms.ToTensor(),
        transforms.RandomHorizontalFlip(),
        transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    ]
)


class Pictures(Dataset):
    """Handwritten digits in colour, 32 pixels wide."""

    def __init__(self, train=True, transform=None):
        digits = load_digits()
        rows = slice(0, 400) if train else slice(400, 500)
        grey = np.kron(digits.images[rows] / 16 * 255, np.ones((4, 4)))
        self.data = np.stack([grey] * 3, axis=-1).astype(np.uint8)
        self.targets = digits.target[rows].tolist()
        self.transform = transform

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return self.transform(self.data[index]), self.targets[index]


trainset = Pictures(train=True, transform=transform)
trainloader = DataLoader(trainset, batch_size=batch_size, shuffle=True, num_workers=0)
testset = Pictures(train=False, transform=transform)
testloader = DataLoader(testset, batch_size=batch_size, shuffle=False, num_workers=0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.norm = nn.BatchNorm2d(16)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 10)

    def forward(self, x):
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.norm(self.conv2(x))))
        x = torch.flatten(x, 1)
        return self.fc2(F.relu(self.fc1(x)))


def train(net, trainloader, epochs, criterion, optimizer):
    net.train()
    running_loss = 0.0
    for epoch in range(epochs):
        for i, data in enumerate(trainloader, 0):
            inputs, labels = data[0].to(device), data[1].to(device)
            optimizer.zero_grad()
            loss = criterion(net(inputs), labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
        print(f"[{epoch + 1}] loss: {running_loss / (i + 1):.3f}")
        avg_loss, running_loss = running_loss / (i + 1), 0.0
    return avg_loss


def test(net, testloader):
    net.eval()
    correct, total, loss = 0, 0, 0.0
    with torch.no_grad():
        for images, labels in testloader:
            outputs = net(images.to(device))
            loss += F.cross_entropy(outputs, labels.to(device), reduction="sum").item()
            correct += (outputs.argmax(1) == labels.to(device)).sum().item()
            total += labels.size(0)
    accuracy = correct / total
    return loss / total, accuracy


if __name__ == "__main__":
    net = Net().to(device)
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    train(net, trainloader, 2, criterion, optimizer)
    print("Finished Training")
    torch.save(net.state_dict(), "./cifar_net.pth")
    loss, accuracy = test(net, testloader)
    print(f"Accuracy of the network on the test images: {100 * accuracy:.1f} %")
