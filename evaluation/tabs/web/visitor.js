// The browser's own random token, made at its first visit.
() => {
  const bytes = crypto.getRandomValues(new Uint8Array(24));
  const make = () => [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  try {
    const token = localStorage.getItem("klein-lora-lab-visitor") ?? make();
    localStorage.setItem("klein-lora-lab-visitor", token);
    return token;
  } catch {
    return make();  // storage is blocked: this page is on its own
  }
}
