"""Train the autoencoder on crops of scenes, in every look it will ever have to decode, then its decoder on whole ones.

Loss: L1, plus L1 of the gradients for crisp edges, plus a low-frequency MSE that settles colour early. The latents
get a little noise instead of a KL term, so that the decoder forgives a denoiser's small errors. At the end the batch-
norm statistics, klein's latent normaliser, are measured on whole pictures.

`sharpen_decoder` leaves the latents as they are, so nothing that was trained on them has to be trained again.
"""

import logging
import math
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline
from torch.nn import functional

from lora_runtime.pocket.build.architecture import build_vae
from lora_runtime.pocket.build.data import half, render_pictures, to_unit_range
from lora_runtime.pocket.build.looks import draw_frame, draw_ink
from lora_runtime.pocket.build.optimizers import MuonAdamW, warm_cosine
from lora_runtime.pocket.build.scenes import SUBJECT, sample_scenes

log = logging.getLogger(__name__)


def train_vae(folder: Path, *, minutes: float, seed: int = 0) -> AutoencoderKLFlux2:
    """Train for `minutes` and save into `folder`; start from what it holds; measure the latent statistics last."""
    torch.manual_seed(seed)
    pictures = _render_training_pictures(folder.with_suffix(".pictures.pt"))
    test = to_unit_range(render_pictures(list(sample_scenes(99, 32, held_out=True)), 128, 128))
    vae = AutoencoderKLFlux2.from_pretrained(folder) if (folder / "config.json").exists() else build_vae()
    vae = vae.to(memory_format=torch.channels_last).train()
    kernels = [p for p in vae.parameters() if p.ndim == 4 and p.shape[0] > 3]
    optimizer = MuonAdamW(
        kernels,
        [p for p in vae.parameters() if not (p.ndim == 4 and p.shape[0] > 3)],
        muon_lr=0.02,
        adam_lr=2e-3,
    )
    start, step, progress = time.monotonic(), 0, 0.0
    while progress < 1.0:
        crop_px, count = (32, 48) if progress < 0.75 else (64, 12)
        loss = _reconstruction_loss(vae, _crop(pictures, count, crop_px))
        loss.backward()
        optimizer.step(warm_cosine(step, progress, warmup_steps=20, floor=0.02))
        step += 1
        progress = (time.monotonic() - start) / (60 * minutes)
        if step % 100 == 0:
            psnr = measure_psnr(vae, test)
            log.info("vae step %d, %.0f%%: loss %.4f, PSNR %.2f dB", step, 100 * progress, loss.item(), psnr)
            vae.save_pretrained(folder)
    _measure_latents(vae, pictures[0])
    vae.save_pretrained(folder)
    log.info("vae done after %d steps: PSNR %.2f dB", step, measure_psnr(vae, test))
    return vae


def sharpen_decoder(vae: AutoencoderKLFlux2, pictures_path: Path, *, minutes: float, seed: int = 1) -> None:
    """Train the decoder alone, in place, on whole pictures: small faces and outlines are what crops leave soft."""
    torch.manual_seed(seed)
    pictures = _render_training_pictures(pictures_path)[0]
    vae.requires_grad_(False).eval()
    latents = _encode(vae, pictures)
    spread = latents.std()
    parts = [vae.decoder, vae.post_quant_conv]
    parameters = [p.requires_grad_(True) for part in parts for p in part.parameters()]
    kernels = [p for p in parameters if p.ndim == 4 and p.shape[0] > 3]
    optimizer = MuonAdamW(
        kernels, [p for p in parameters if not (p.ndim == 4 and p.shape[0] > 3)], muon_lr=0.006, adam_lr=6e-4
    )
    test = to_unit_range(render_pictures(list(sample_scenes(99, 32, held_out=True)), 128, 128))
    start, step, progress = time.monotonic(), 0, 0.0
    while progress < 1.0:
        rows = torch.randint(len(pictures), (4,)).tolist()
        clean = latents[rows]
        noisy = clean + 0.04 * spread * torch.randn_like(clean)
        with half():
            back = vae.decode(noisy).sample.float()
        loss = _difference(back, to_unit_range(pictures[rows]), edge_weight=2.0)
        loss.backward()
        optimizer.step(warm_cosine(step, progress, warmup_steps=20, floor=0.02))
        step += 1
        progress = (time.monotonic() - start) / (60 * minutes)
        if step % 100 == 0:
            log.info("decoder step %d, %.0f%%: PSNR %.2f dB", step, 100 * progress, measure_psnr(vae, test))
    vae.requires_grad_(False)
    log.info("decoder done after %d steps: PSNR %.2f dB", step, measure_psnr(vae, test))


@torch.no_grad()
def encode_latents(vae: AutoencoderKLFlux2, pictures: torch.Tensor) -> torch.Tensor:
    """Encode (N, H, W, 3) uint8 into normalised, packed latents (N, H/16 * W/16, 4 * latent channels) in bf16.

    Source: `Flux2KleinPipeline._encode_vae_image` and `_pack_latents`.
    """
    mean = vae.bn.running_mean.view(1, -1, 1, 1)
    std = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps)
    latents = (Flux2KleinPipeline._patchify_latents(_encode(vae, pictures)) - mean) / std
    packed: torch.Tensor = Flux2KleinPipeline._pack_latents(latents).to(torch.bfloat16)
    return packed


@torch.no_grad()
def measure_psnr(vae: AutoencoderKLFlux2, images: torch.Tensor) -> float:
    """Measure the round trip's PSNR in dB; images in [-1, 1]."""
    with half():
        back = vae.decode(vae.encode(images).latent_dist.mode()).sample.float().clamp(-1, 1)
    return 10 * math.log10(4.0 / functional.mse_loss(back, images).item())


def _render_training_pictures(path: Path) -> list[torch.Tensor]:
    """Draw plain, inked, framed and subject scenes at three sizes, once."""
    if path.exists():
        pictures: list[torch.Tensor] = torch.load(path)
        return pictures
    plain = render_pictures(list(sample_scenes(11, 1700)), 128, 128)
    inked = render_pictures(list(sample_scenes(12, 400)), 128, 128, look=draw_ink)
    framed = render_pictures(list(sample_scenes(13, 250)), 128, 128, look=draw_frame)
    subject = render_pictures(list(sample_scenes(14, 250, thing=SUBJECT)), 128, 128)
    small = render_pictures(list(sample_scenes(15, 1000)), 64, 64)
    big = render_pictures(list(sample_scenes(16, 120)), 256, 256)
    medium = torch.cat([torch.as_tensor(part) for part in (plain, inked, framed, subject)])
    pictures = [medium, torch.as_tensor(small), torch.as_tensor(big)]
    torch.save(pictures, path)
    return pictures


def _crop(pictures: list[torch.Tensor], count: int, size_px: int) -> torch.Tensor:
    crops = []
    for kind in torch.multinomial(torch.tensor([0.7, 0.15, 0.15]), count, replacement=True).tolist():
        source = pictures[kind]
        row = int(torch.randint(len(source), ()))
        y, x = (int(torch.randint(side - size_px + 1, ())) for side in source.shape[1:3])
        crops.append(source[row, y : y + size_px, x : x + size_px])
    return to_unit_range(torch.stack(crops)).contiguous(memory_format=torch.channels_last)


def _reconstruction_loss(vae: AutoencoderKLFlux2, images: torch.Tensor) -> torch.Tensor:
    with half():
        latents = vae.encode(images).latent_dist.mean.float()
        noisy = latents + 0.05 * torch.randn_like(latents) * latents.detach().std()
        back = vae.decode(noisy).sample.float()
    loss: torch.Tensor = _difference(back, images, edge_weight=1.0) + 1e-5 * latents.square().mean()
    return loss


def _difference(back: torch.Tensor, images: torch.Tensor, *, edge_weight: float) -> torch.Tensor:
    """Compare two batches (B, 3, H, W): pixels, edges, and colour over 8 x 8 px."""
    edges = sum((torch.diff(back, dim=d) - torch.diff(images, dim=d)).abs().mean() for d in (2, 3))
    colour = functional.mse_loss(functional.avg_pool2d(back, 8), functional.avg_pool2d(images, 8))
    difference: torch.Tensor = (back - images).abs().mean() + edge_weight * edges + 2 * colour
    return difference


@torch.no_grad()
def _encode(vae: AutoencoderKLFlux2, pictures: torch.Tensor) -> torch.Tensor:
    """Encode (N, H, W, 3) uint8 into latents as the decoder takes them, (N, C, H/8, W/8) fp32."""
    chunks = []
    for chunk in pictures.split(32):
        with half():
            chunks.append(vae.encode(to_unit_range(chunk)).latent_dist.mode().float())
    return torch.cat(chunks)


@torch.no_grad()
def _measure_latents(vae: AutoencoderKLFlux2, pictures: torch.Tensor) -> None:
    """Set the batch-norm statistics to the mean and variance of packed latents over whole pictures."""
    latents = Flux2KleinPipeline._patchify_latents(_encode(vae, pictures[::2]))
    vae.bn.running_mean.copy_(latents.mean(dim=(0, 2, 3)))
    vae.bn.running_var.copy_(latents.var(dim=(0, 2, 3)))
